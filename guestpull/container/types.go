package container

import (
	"context"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coffer-project/coffer/guestpull/container/spec"
	"github.com/coffer-project/coffer/guestpull/container/stdio"
	"github.com/coffer-project/coffer/guestpull/image"
	agentpb "github.com/coffer-project/coffer/proto/agent"
	"github.com/coffer-project/coffer/proto/agentpolicy"
	"github.com/coffer-project/coffer/proto/lazyregexp"
)

// Images hands out verified images.
type Images interface {
	// Pull makes the image present for the container of the request and keeps it until Release. It may take minutes.
	Pull(ctx context.Context, req image.Request) (*image.Image, error)
	// Release gives back what Pull holds for the container. Without such an image it does nothing.
	Release(ctx context.Context, containerID string) error
}

// Policy decides about containers; package policy's engines are such.
type Policy interface {
	// AllowContainer is asked twice: before anything is done, and before the container exists. See [agentpolicy.Facts].
	AllowContainer(ctx context.Context, req *agentpb.CreateContainerRequest, facts *agentpolicy.Facts) error
}

// Scratch is the guest's scratch disk.
type Scratch interface {
	// Dir returns where it is mounted, empty when there is none. It may have to wait for it.
	Dir(ctx context.Context) (string, error)
}

// CDI gives containers the passed-through devices that annotations name; package gpu's Service is one.
type CDI interface {
	// Inject adds the devices to the specification. It may have to wait until they can be used. NotFound: the guest has no such device.
	Inject(ctx context.Context, to *specs.Spec, names []string) error
}

// Stdio is what a new process gets for its standard streams: a terminal that the runtime makes, or pipes.
type Stdio struct {
	Terminal bool
	Child    *stdio.Child // without a terminal; the caller closes it
}

// Process is a process that was just started.
type Process struct {
	// PID is the process's number as the agent sees it.
	PID int
	// Exit gets the exit status once: the code, or 128 plus the number of the fatal signal.
	Exit <-chan int
	// Console is the terminal's master, nil without a terminal. The receiver owns it.
	Console *os.File
}

// Runtime is the low-level container runtime. It is a little wider than our interfaces usually are: it is the set of commands of
// the OCI runtime command line, of which there is one implementation and one fake. All calls may run concurrently. Errors are
// classified by errdefs; their text is the runtime's and may name what the host asked to run.
type Runtime interface {
	// Create makes a container from the bundle. Its first process exists when it returns, but runs its program only after Start.
	Create(ctx context.Context, id, bundle string, stdio Stdio) (Process, error)
	// Start runs the program of a created container.
	Start(ctx context.Context, id string) error
	// Exec starts a further process. The container must be running.
	Exec(ctx context.Context, id string, process *specs.Process, stdio Stdio) (Process, error)
	// Kill signals the first process; SIGKILL reaches every process of the container. NotFound: nothing runs any more.
	Kill(ctx context.Context, id string, signal int) error
	// Freeze stops all processes, or lets them go on.
	Freeze(ctx context.Context, id string, frozen bool) error
	// Update replaces the limits that are set in resources.
	Update(ctx context.Context, id string, resources *specs.LinuxResources) error
	// Delete kills and forgets the container, also when it exists only in part or not at all.
	Delete(ctx context.Context, id string) error
}

// Namespaces are paths of the pod's namespaces; an empty path stands for a new namespace.
type Namespaces struct{ UTS, IPC, PID, User string }

// Sandbox is what containers need of their pod.
type Sandbox interface {
	// Namespaces returns what a container joins. A user namespace is made with the first container that asks for it.
	// FailedPrecondition: there is no sandbox, no shared pid namespace, or the pod has a user namespace with other mappings.
	Namespaces(sharePID bool, users spec.Users) (Namespaces, error)
	// Mount makes a storage of the pod present, in guest memory. It stays for the life of the pod, as a volume of a pod does.
	Mount(ctx context.Context, storage *agentpb.Storage) error
	// OpenVolume opens a storage of the pod, or a part of it. With share, mounts that a container makes in it reach the others that have
	// it, until release is called; it may be repeated. InvalidArgument: no such storage, or its mounts cannot be shared.
	OpenVolume(path string, share bool) (handle *os.File, release func(context.Context) error, err error)
	// SetSysctl sets a variable of the pod's network namespace.
	SetSysctl(name, value string) error
	// WatchOOM reports the container's out-of-memory kills to the host until stop is called.
	WatchOOM(containerID, cgroupPath string) (stop func(), err error)
}

// Holder starts a process that does nothing until it is told to end: what stands in for the sandbox container that some shims create.
type Holder func() (Process, error)

// idPattern: identifiers become parts of paths and of command lines.
var idPattern = lazyregexp.New(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)

// CheckID accepts a container, exec or sandbox identifier. InvalidArgument otherwise.
func CheckID(what, id string) error {
	if !idPattern.MatchString(id) {
		return fmt.Errorf("%s id %.40q has characters other than letters, digits, dot, dash and underscore, or is too long: %w",
			what, id, errdefs.ErrInvalidArgument)
	}
	return nil
}
