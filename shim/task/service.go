package task

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	eventsapi "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"

	"github.com/coffer-project/coffer/shim/agent"
	"github.com/coffer-project/coffer/shim/bundle"
	cofferevent "github.com/coffer-project/coffer/shim/event"
	"github.com/coffer-project/coffer/shim/hostfiles/live"
	"github.com/coffer-project/coffer/shim/sandbox"
)

// undoBudget bounds what is taken back after a failed call whose caller may have gone.
const undoBudget = 30 * time.Second

const (
	// connectionGrace is how long the client of a broken connection may take to say so after its calls have failed.
	connectionGrace = 100 * time.Millisecond
	// podEndGrace is how long a pod may take to find out that its VM has ended.
	podEndGrace = 3 * time.Second
)

// Service serves the tasks of one pod. Errors are of errdefs classes; the interceptor of the plugin package turns them
// into RPC status.
type Service struct {
	// life is the shim's own context: processes and their events outlive the requests that began them.
	life       context.Context
	pod        *sandbox.Pod
	outbox     *outbox
	records    Records
	configPath string
	placed     func(stateDir string) error
	hooked     func(pending bool) error
	shutdown   func()

	oomOnce sync.Once
	live    *live.Keeper

	emptyDirsOnce sync.Once
	emptyDirs     bundle.EmptyDirs

	// making is held while a create call makes the pod, so that a second one waits and then joins it.
	making sync.Mutex

	mu         sync.Mutex
	containers map[string]*container
	creations  map[string]*creation // under way, by id
	ownsPod    bool                 // a task made the pod, and the last task ends it
	past       []pastReport         // of deleted containers, the oldest first
}

// keptReports is how many deleted containers are still reported: a pod that restarts a container for weeks must not
// grow.
const keptReports = 16

type pastReport struct {
	id     string
	report sandbox.ContainerReport
}

var (
	_ taskapi.TTRPCTaskService = (*Service)(nil)
	_ sandbox.Members          = (*Service)(nil)
)

// Records are containerd's records of containers; package containers' Client is them.
type Records interface {
	// Image is what containerd calls the image of a container, empty when it does not know.
	Image(ctx context.Context, id string) (string, error)
	// AsksForGroup tells whether CRI was asked for the container's primary group by number.
	AsksForGroup(ctx context.Context, id string) (bool, error)
	// SetUser corrects who the container's process runs as.
	SetUser(ctx context.Context, id string, user specs.User) error
}

// Options are what a Service needs of the process that it runs in. All fields but ConfigPath are required.
type Options struct {
	Pod       *sandbox.Pod
	Publisher events.Publisher
	Records   Records
	// ConfigPath names the runtime configuration that the shim was started with; empty means the default.
	ConfigPath string
	// Placed remembers where the pod's state is, Hooked whether hooks are to be run for its container's end.
	Placed func(stateDir string) error
	Hooked func(pending bool) error
	// Shutdown ends the process after the answer to the request under way has left.
	Shutdown func()
}

// NewService makes the service and registers it with the pod. life ends with the shim.
func NewService(life context.Context, options Options) *Service {
	s := &Service{
		life: life, pod: options.Pod, outbox: newOutbox(life, options.Publisher),
		records: options.Records, configPath: options.ConfigPath, placed: options.Placed, hooked: options.Hooked, shutdown: options.Shutdown,
		live: live.NewKeeper(life), containers: map[string]*container{}, creations: map[string]*creation{},
	}
	options.Pod.SetMembers(s)
	return s
}

// RegisterTTRPC implements containerd's shim.TTRPCService.
func (s *Service) RegisterTTRPC(server *ttrpc.Server) error {
	taskapi.RegisterTTRPCTaskService(server, s)
	return nil
}

// Close publishes the events that are pending. The pod has ended before.
func (s *Service) Close(ctx context.Context) error {
	if err := s.outbox.close(ctx); err != nil {
		return fmt.Errorf("deliver last events: %w", err)
	}
	return nil
}

// container finds a task. It fails with errdefs.ErrNotFound.
func (s *Service) container(id string) (*container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.containers[id]
	if !ok {
		return nil, fmt.Errorf("container %s: %w", id, errdefs.ErrNotFound)
	}
	return c, nil
}

// process finds a task's first process or an exec in it. It fails with errdefs.ErrNotFound.
func (s *Service) process(id, execID string) (*process, error) {
	c, err := s.container(id)
	if err != nil {
		return nil, err
	}
	return c.process(execID)
}

// creation is a Create call under way.
type creation struct {
	cancel context.CancelCauseFunc
	done   chan struct{}
	pull   *pull // nil until it begins; guarded by the service's lock
}

// noteCreation remembers the pull of a creation under way, for reports.
func (s *Service) noteCreation(id string, p *pull) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c, ok := s.creations[id]; ok {
		c.pull = p
	}
}

// errAbandoned is the cause of a creation that a Delete of the same id gave up.
var errAbandoned = errors.New("the client has deleted the container meanwhile")

// begin takes an id for a creation, which runs with the returned context; the caller calls the returned function when it has
// ended. It fails with errdefs.ErrAlreadyExists when the id is taken.
func (s *Service) begin(ctx context.Context, id string) (context.Context, func(), error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, exists := s.containers[id]
	_, underWay := s.creations[id]
	if exists || underWay {
		return nil, nil, fmt.Errorf("container %s: %w", id, errdefs.ErrAlreadyExists)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	c := &creation{cancel: cancel, done: make(chan struct{})}
	s.creations[id] = c
	return ctx, func() {
		cancel(nil)
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.creations, id)
		close(c.done)
	}, nil
}

// abandon gives a creation under way up and waits for its end. containerd's shim protocol does not tell a server that a
// client has given up its call, but containerd deletes a task whose creation it has given up.
func (s *Service) abandon(ctx context.Context, id string) error {
	s.mu.Lock()
	c, ok := s.creations[id]
	s.mu.Unlock()
	if !ok {
		return nil
	}
	c.cancel(errAbandoned)
	select {
	case <-c.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the abandoned creation of container %s: %w", id, ctx.Err())
	}
}

func (s *Service) add(c *container) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.containers[c.id] = c
}

// remove reports whether the container was there. Its report stays: CRI deletes the task of a container that has
// exited at once, and only then do people ask what happened.
func (s *Service) remove(c *container) bool {
	report := c.reported()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.containers[c.id] != c {
		return false
	}
	delete(s.containers, c.id)
	s.past = append(s.past, pastReport{c.id, report})
	s.past = s.past[max(0, len(s.past)-keptReports):]
	return true
}

// Publish implements sandbox.Members.
func (s *Service) Publish(e cofferevent.Event) { s.outbox.post(e) }

func (s *Service) reportOOM(id string) {
	s.outbox.post(&eventsapi.TaskOOM{ContainerID: id})
	log.G(s.life).WithField("container", id).Warn("container ran out of memory")
}

// all are the tasks in the order of their ids.
func (s *Service) all() []*container {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*container
	for _, id := range slices.Sorted(maps.Keys(s.containers)) {
		all = append(all, s.containers[id])
	}
	return all
}

// pid is what every process of the pod is known by on the host: the VM's monitor, because the guest's process ids mean
// nothing here.
func (s *Service) pid() uint32 { return s.pod.PID() }

// because adds the end of the pod to an error that came of it. A lost connection is seen here before the pod has found
// out why, so it waits for that a little.
func (s *Service) because(guest *agent.Client, err error) error {
	if !errdefs.IsUnavailable(err) {
		return err
	}
	select {
	case <-guest.Done():
	case <-time.After(connectionGrace):
		return err // what is unavailable is something that the guest needs
	}
	select {
	case <-s.pod.Gone():
	case <-time.After(podEndGrace):
	}
	if cause := s.pod.Exit().Err; cause != nil {
		return fmt.Errorf("%w: %w", err, cause)
	}
	return err
}

// Reports implements sandbox.Members.
func (s *Service) Reports() map[string]sandbox.ContainerReport {
	reports := map[string]sandbox.ContainerReport{}
	s.mu.Lock()
	for _, past := range s.past {
		reports[past.id] = past.report
	}
	for id, c := range s.creations {
		if c.pull != nil {
			reports[id] = c.pull.reported()
		}
	}
	s.mu.Unlock()
	for _, c := range s.all() {
		if c.kind != kindPause {
			reports[c.id] = c.reported()
		}
	}
	return reports
}

// watchOOM reports containers that lose a process to the guest's OOM killer, once per pod.
func (s *Service) watchOOM(guest *agent.Client) {
	s.oomOnce.Do(func() {
		go func() {
			if err := guest.OOMEvents(s.life, s.reportOOM); err != nil {
				log.G(s.life).WithError(err).Warn("guest reports no out-of-memory kills")
			}
		}()
	})
}
