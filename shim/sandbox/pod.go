package sandbox

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	cgroupstats "github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coffer-project/coffer/shim/agent"
	"github.com/coffer-project/coffer/shim/config"
	"github.com/coffer-project/coffer/shim/device/block"
	"github.com/coffer-project/coffer/shim/device/vfio"
	cofferevent "github.com/coffer-project/coffer/shim/event"
	"github.com/coffer-project/coffer/shim/network"
	"github.com/coffer-project/coffer/shim/tee"
	"github.com/coffer-project/coffer/shim/vm"
)

// Network joins a VM to a pod's network namespace.
type Network interface {
	// Attach fails without leaving anything behind. The caller calls Release.
	Attach(ctx context.Context, netns string) (*network.Attachment, error)
	// Release undoes Attach, after the VM has stopped. It is idempotent.
	Release(ctx context.Context, attachment *network.Attachment) error
	// Make makes a namespace and binds it to path. It fails without leaving anything behind. The caller calls Close.
	Make(path string) (Namespace, error)
	Reaper
}

// Namespace is a network namespace that was made for one pod.
type Namespace interface {
	// TID is a thread that is in the namespace until Close, for those who look at /proc/<id>/ns/net.
	TID() int
	// Close removes the namespace. It is idempotent.
	Close() error
}

// Members are the pod's containers as the task service knows them.
type Members interface {
	// End kills all containers and waits until their exits are reported or ctx ends.
	End(ctx context.Context)
	// Reports tells about each container; see ContainerReport.
	Reports() map[string]ContainerReport
	// Publish hands an event to containerd, in order and without waiting.
	Publish(e cofferevent.Event)
	// Metrics asks the guest for the figures of the containers that run.
	Metrics(ctx context.Context) []*cgroupstats.Metrics
}

// Platform is what a pod is built on. All fields are required, unless they say otherwise.
type Platform struct {
	// LoadConfig reads the runtime configuration at path; empty means the default.
	LoadConfig func(path string) (*config.Config, error)
	// NewDriver makes the VM driver that a configuration asks for.
	NewDriver func(*config.Config) (vm.Driver, error)
	Network   Network
	// Devices is where the node's physical devices are; the zero value is this machine.
	Devices vfio.Host
	// Forward relays connections to the loopback of the network namespace at path into the guest, by streams that dial
	// opens, until the closer is closed.
	Forward func(ctx context.Context, netns string, dial agent.DialFunc) (io.Closer, error)
	// TEE is the machine as far as confidential guests are concerned.
	TEE tee.Host
	// HostDNS reads the node's own resolver settings, which a pod without settings inherits.
	HostDNS func() (*cri.DNSConfig, error)
}

// Request says which pod to create.
type Request struct {
	// ID is the sandbox id, Namespace containerd's namespace, Bundle the directory that containerd made for it.
	ID, Namespace, Bundle string
	// NetNS is the path of the pod's network namespace; empty means a pod without a network.
	NetNS string
	// OwnNetNS makes a namespace for a pod that got none. Between Create and Start somebody else may put a network into
	// it, which finds it by Pod.PID; without one the pod cannot start.
	OwnNetNS bool
	// ConfigPath names the runtime configuration; empty means the default.
	ConfigPath string
	// Config is CRI's description of the pod, possibly empty, never nil. The pod owns it.
	Config *cri.PodSandboxConfig
	// OwnFiles is set when nobody else writes hosts, resolv.conf and hostname for the pod's containers.
	OwnFiles bool
	// DeviceNodes are the device nodes of a container that is a pod by itself.
	DeviceNodes []string
	// Placed is called with the state directory before it is made, so that a later process can find it.
	Placed func(stateDir string) error
}

// Exit tells how a pod ended.
type Exit struct {
	At time.Time
	// Status is 0 for a pod that was asked to end, exitDied for one whose VM ended by itself.
	Status uint32
	// Err is nil for a requested end.
	Err error
}

// exitDied is what containerd itself reports when it cannot know an exit code.
const exitDied = 255

// Pod is one pod. Its methods are safe for concurrent use; operations that change the state run one at a time.
type Pod struct {
	platform Platform
	// life is the shim's own context: what a pod does after a request was answered must not end with the request.
	life context.Context

	// op is held (full) by the operation that changes the state; a channel, so that waiting for it ends with a context.
	op   chan struct{}
	undo undo // guarded by op

	// gone is closed as soon as no container of the pod can run any more, ended when everything is released or given up.
	gone, ended chan struct{}
	goneOnce    sync.Once
	endedOnce   sync.Once

	mu        sync.Mutex
	state     State
	interrupt context.CancelCauseFunc // cancels a start under way
	request   Request
	config    *config.Config
	pod       config.Pod
	stateDir  string
	netns     Namespace // of a pod that made its own, until its VM is there
	members   Members
	instance  vm.Instance
	guest     *agent.Client
	volumes   *block.Manager
	devices   *vfio.Claim
	scratch   bool // the guest has a scratch disk and makes use of it
	files     map[string]string
	report    report
	createdAt time.Time
	exit      Exit
}

// New makes a pod that nobody has asked for yet. life ends with the shim.
func New(life context.Context, platform Platform) *Pod {
	return &Pod{
		platform: platform, life: life, op: make(chan struct{}, 1),
		gone: make(chan struct{}), ended: make(chan struct{}),
	}
}

// SetMembers tells the pod who knows its containers. It is called once, before the first request.
func (p *Pod) SetMembers(members Members) { p.members = members }

// ID is the sandbox id, empty before Create.
func (p *Pod) ID() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.request.ID
}

// CreatedAt is when the pod was asked for.
func (p *Pod) CreatedAt() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.createdAt
}

// State is where the pod stands now.
func (p *Pod) State() State {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state
}

// Hostname is the pod's, empty when it has none.
func (p *Pod) Hostname() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.request.Config.GetHostname()
}

// Sysctls are the kernel variables that the pod's containers find set.
func (p *Pod) Sysctls() map[string]string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.request.Config.GetLinux().GetSysctls()
}

// StrictGroups tells whether the pod's processes must not get the groups that an image puts their user in.
func (p *Pod) StrictGroups() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	policy := p.request.Config.GetLinux().GetSecurityContext().GetSupplementalGroupsPolicy()
	return policy == cri.SupplementalGroupsPolicy_Strict
}

// Config is the runtime configuration, nil before Create.
func (p *Pod) Config() *config.Config {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.config
}

// PID is the process id of the VM monitor. Before there is one, it is a thread in the network namespace that the pod made
// for itself, or 0.
func (p *Pod) PID() uint32 {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.instance != nil:
		return uint32(p.instance.PID())
	case p.netns != nil:
		return uint32(p.netns.TID())
	}
	return 0
}

// Guest is the connection to the agent of a running pod. It fails with errdefs.ErrFailedPrecondition in other states.
func (p *Pod) Guest() (*agent.Client, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state != StateRunning {
		if p.exit.Err != nil {
			return nil, fmt.Errorf("pod %s is %s: %w: %w", p.request.ID, p.state, p.exit.Err, errdefs.ErrFailedPrecondition)
		}
		return nil, fmt.Errorf("pod %s is %s: %w", p.request.ID, p.state, errdefs.ErrFailedPrecondition)
	}
	return p.guest, nil
}

// Volumes are the block devices of a running pod. It fails with errdefs.ErrFailedPrecondition in other states.
func (p *Pod) Volumes() (*block.Manager, error) {
	if _, err := p.Guest(); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.volumes, nil
}

// Gone is closed as soon as no container of the pod can run any more. Containers that were running then have exited.
func (p *Pod) Gone() <-chan struct{} { return p.gone }

// Ended is closed when the pod has released everything, or has failed to.
func (p *Pod) Ended() <-chan struct{} { return p.ended }

// Exit tells how the pod ended. It is valid once Gone is closed.
func (p *Pod) Exit() Exit {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.exit
}

// Wait waits until the pod has ended.
func (p *Pod) Wait(ctx context.Context) (Exit, error) {
	select {
	case <-p.ended:
		return p.Exit(), nil
	case <-ctx.Done():
		return Exit{}, ctx.Err()
	}
}

// lock waits for the operation under way to end. The caller calls the returned function.
func (p *Pod) lock(ctx context.Context) (func(), error) {
	select {
	case p.op <- struct{}{}:
		return func() { <-p.op }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for the pod's operation under way: %w", ctx.Err())
	}
}

// move makes a transition and logs it.
func (p *Pod) move(ctx context.Context, e event) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	to, err := p.state.next(e)
	if err != nil {
		return err
	}
	log.G(ctx).WithField("sandbox", p.request.ID).WithField("from", p.state.String()).WithField("to", to.String()).Debug("pod changed state")
	p.state = to
	return nil
}
