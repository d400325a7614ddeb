package task

import (
	"fmt"
	"sync"
	"time"

	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"

	agentpb "github.com/coffer-project/coffer/proto/agent"
	"github.com/coffer-project/coffer/shim/agent"
)

// processState is where a process stands; the package comment draws the states.
type processState int

const (
	stateCreated processState = iota
	stateRunning
	statePaused
	stateStopped
)

var processStates = [...]struct {
	name string
	api  tasktypes.Status
}{
	stateCreated: {"created", tasktypes.Status_CREATED},
	stateRunning: {"running", tasktypes.Status_RUNNING},
	statePaused:  {"paused", tasktypes.Status_PAUSED},
	stateStopped: {"stopped", tasktypes.Status_STOPPED},
}

func (s processState) String() string           { return processStates[s].name }
func (s processState) status() tasktypes.Status { return processStates[s].api }

// exit is how a process ended. status is the code, or 128 plus the number of the fatal signal.
type exit struct {
	status uint32
	at     time.Time
}

// process is a container's first process or an exec.
type process struct {
	container *container
	execID    string // empty for the first process
	stdio     *stdio
	exec      *agentpb.ExecProcessRequest // what starts an exec; nil for the first process

	// op is held while the process is started, paused, resumed or deleted, which must not overlap.
	op sync.Mutex

	// killed is closed at the first fatal signal that a client sends.
	killed   chan struct{}
	killOnce sync.Once

	mu      sync.Mutex
	state   processState
	exit    exit
	stopped chan struct{} // closed when state is stateStopped
}

func newProcess(c *container, execID string, stdio *stdio) *process {
	return &process{
		container: c, execID: execID, stdio: stdio, killed: make(chan struct{}), stopped: make(chan struct{}),
	}
}

// id is how events name the process: the exec id, or the container's id for its first process.
func (p *process) id() string {
	if p.execID != "" {
		return p.execID
	}
	return p.container.id
}

// inGuest is the process as the agent knows it. It fails with errdefs.ErrFailedPrecondition while there is no agent. The
// container must not be one that stands for the pod.
func (p *process) inGuest() (*agent.Process, error) {
	guest, err := p.container.inGuest()
	if err != nil {
		return nil, err
	}
	return guest.Process(p.container.id, p.execID), nil
}

func (p *process) String() string {
	if p.execID != "" {
		return fmt.Sprintf("exec %s of container %s", p.execID, p.container.id)
	}
	return "container " + p.container.id
}

func (p *process) current() (processState, exit) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state, p.exit
}

// move changes the state of a process that has not stopped. It fails with errdefs.ErrFailedPrecondition when the
// process is not in the state from.
func (p *process) move(from, to processState) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state != from {
		return fmt.Errorf("%s is %s, not %s: %w", p, p.state, from, errdefs.ErrFailedPrecondition)
	}
	p.state = to
	return nil
}

// stop ends the process's life, unless it had ended before. report is called before anybody who waits for the end goes on,
// and must not wait itself; nil reports nothing.
func (p *process) stop(e exit, report func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state == stateStopped {
		return
	}
	p.state, p.exit = stateStopped, e
	if report != nil {
		report()
	}
	close(p.stopped)
}
