package task

import (
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coffer-project/coffer/shim/agent"
	"github.com/coffer-project/coffer/shim/bundle"
	"github.com/coffer-project/coffer/shim/device/block"
	"github.com/coffer-project/coffer/shim/hostfiles/live"
	"github.com/coffer-project/coffer/shim/sandbox"
)

// kind tells what a container has to do with the pod.
type kind int

const (
	// kindMember is a container in a pod that somebody else made.
	kindMember kind = iota
	// kindPause stands for the pod itself; there is no such container in the guest.
	kindPause
	// kindSingle made its pod for itself alone.
	kindSingle
)

// container is one task.
type container struct {
	id     string
	bundle string
	kind   kind
	init   *process
	// users are the names behind the user ids of its processes.
	users bundle.Users
	// recorded is the user that containerd's record of the container was corrected to, nil when it was not.
	recorded *specs.User
	// files are the host's files that the container has, live the copies that follow the kubelet. They are set before
	// guest; nil for kindPause.
	files *bundle.Files
	live  []*live.Volume
	// removed is closed when the task is deleted.
	removed chan struct{}

	mu sync.Mutex
	// guest is the agent of the pod that the container was created in; nil for kindPause, and before there is a VM. It
	// stays usable while the pod stops, when the pod itself no longer hands it out.
	guest *agent.Client
	// pending is what Start makes the container from whose VM boots only then; nil otherwise.
	pending *pending
	// hooks are still to be run when the container has ended; nil when there are none, or they were run.
	hooks *specs.Hooks
	// annotations are the specification's, which hooks are told.
	annotations map[string]string
	execs       map[string]*process
	report      sandbox.ContainerReport
	// volumes are the block devices that the container uses.
	volumes []*block.Claim
}

func newContainer(id, bundle string, kind kind) *container {
	return &container{id: id, bundle: bundle, kind: kind, execs: map[string]*process{}, removed: make(chan struct{})}
}

// inGuest is the agent that the container is known to. It fails with errdefs.ErrFailedPrecondition while there is none.
func (c *container) inGuest() (*agent.Client, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.guest == nil {
		return nil, fmt.Errorf("container %s has no virtual machine before it is started: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	return c.guest, nil
}

// joined notes that the guest has the container.
func (c *container) joined(guest *agent.Client) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.guest, c.pending = guest, nil
}

// waiting is what the container is still to be made from, or nil.
func (c *container) waiting() *pending {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pending
}

// wait changes what the container is to be made from.
func (c *container) wait(next *pending) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pending = next
}

// process finds the first process (execID empty) or an exec.
func (c *container) process(execID string) (*process, error) {
	if execID == "" {
		return c.init, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	p, ok := c.execs[execID]
	if !ok {
		return nil, fmt.Errorf("exec %s of container %s: %w", execID, c.id, errdefs.ErrNotFound)
	}
	return p, nil
}

// addExec fails with errdefs.ErrAlreadyExists when the id is taken.
func (c *container) addExec(p *process) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.execs[p.execID]; ok {
		return fmt.Errorf("exec %s of container %s: %w", p.execID, c.id, errdefs.ErrAlreadyExists)
	}
	c.execs[p.execID] = p
	return nil
}

func (c *container) removeExec(p *process) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.execs[p.execID] == p {
		delete(c.execs, p.execID)
	}
}

// allExecs are the execs that are not deleted.
func (c *container) allExecs() []*process {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Values(c.execs))
}

// runningExecs are the execs whose end has not been reported.
func (c *container) runningExecs() []*process {
	return slices.DeleteFunc(c.allExecs(), func(p *process) bool {
		state, _ := p.current()
		return state != stateRunning
	})
}

// note changes the container's report.
func (c *container) note(change func(*sandbox.ContainerReport)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(&c.report)
}

// reported is a copy of the container's report as of now.
func (c *container) reported() sandbox.ContainerReport {
	state, _ := c.init.current()
	c.mu.Lock()
	defer c.mu.Unlock()
	report := c.report
	report.State = state.String()
	return report
}
