package spec

import (
	"fmt"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coffer-project/coffer/proto/oci"
)

// Limits on the size of what one container may ask for. They are far above what any orchestrator sends; without them one request
// could make the guest write an endless document.
const (
	maxMounts    = 512
	maxEnv       = 4096
	maxArgs      = 4096
	maxText      = 1 << 20 // bytes of all arguments and of all variables, each
	maxPaths     = 256
	maxGroups    = 1024
	maxRlimits   = 32
	maxSysctls   = 64
	maxPathBytes = 4096
)

// MaxDevices bounds the devices of one container.
const MaxDevices = 64

// Options is the guest's own part of the specification.
type Options struct {
	// ContainerID names the container, already checked.
	ContainerID string
	// Rootfs is the only root path that the request may name.
	Rootfs string
	// CgroupPath is where the container's cgroup is, below the cgroup mount.
	CgroupPath string
	// UTS, IPC and PID are the namespaces of the sandbox to join; empty makes a new one.
	UTS, IPC, PID string
	// User is the user namespace of Users, which are MappedUsers of the request; empty when they are the guest's own.
	User  string
	Users Users
	// AllowSource tells whether a bind mount may come from the path.
	AllowSource func(path string) bool
	// AllowShared tells whether mounts that the container makes in that source may reach other containers; nil: nowhere.
	AllowShared func(path string) bool
	// Disks are the paths at which the container sees disks that were plugged in; each must be in the request, and gets its number
	// by SetDisk.
	Disks map[string]bool
}

// Build returns a new specification for the container. InvalidArgument: the request holds something that this guest never grants.
func Build(in *oci.Spec, o Options) (*specs.Spec, error) {
	if in.GetProcess() == nil || in.GetRoot() == nil || in.GetLinux() == nil {
		return nil, refuse("specification of container %s lacks process, root or linux", o.ContainerID)
	}
	if err := checkTop(in, o); err != nil {
		return nil, err
	}
	process, err := BuildProcess(in.GetProcess())
	if err != nil {
		return nil, err
	}
	mounts, err := buildMounts(in.GetMounts(), o.AllowSource)
	if err != nil {
		return nil, err
	}
	if o.Users.Mapped() {
		mapMounts(mounts, o.Users)
	}
	linux, err := buildLinux(in.GetLinux(), o)
	if err != nil {
		return nil, err
	}
	if linux.RootfsPropagation, err = rootPropagation(in.GetLinux().GetRootfsPropagation(), mounts, o, process); err != nil {
		return nil, err
	}
	return &specs.Spec{
		Version: specs.Version,
		Process: process,
		Root:    &specs.Root{Path: o.Rootfs, Readonly: in.GetRoot().GetReadonly()},
		Mounts:  mounts,
		Linux:   linux,
	}, nil
}

func (o Options) shareable(path string) bool { return o.AllowShared != nil && o.AllowShared(path) }

func checkTop(in *oci.Spec, o Options) error {
	if got := in.GetRoot().GetPath(); got != o.Rootfs {
		return refuse("root path %q of container %s: only %s is allowed", got, o.ContainerID, o.Rootfs)
	}
	h := in.GetHooks()
	if n := len(h.GetPrestart()) + len(h.GetPoststart()) + len(h.GetPoststop()) + len(h.GetCreateRuntime()) +
		len(h.GetCreateContainer()) + len(h.GetStartContainer()); n > 0 {
		return refuse("container %s asks for %d hooks: hooks never run in this guest", o.ContainerID, n)
	}
	if in.GetWindows() != nil || in.GetSolaris() != nil {
		return refuse("container %s is not a linux container", o.ContainerID)
	}
	return nil
}

// refuse makes the error of everything that is not on an allow-list.
func refuse(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

// checkPath accepts a clean absolute path.
func checkPath(what, p string) error {
	if len(p) > maxPathBytes || !path.IsAbs(p) || path.Clean(p) != p || strings.ContainsRune(p, 0) {
		return refuse("%s %.200q is not a clean absolute path", what, p)
	}
	return nil
}

func checkPaths(what string, paths []string) ([]string, error) {
	if len(paths) > maxPaths {
		return nil, refuse("%d %ss: at most %d are allowed", len(paths), what, maxPaths)
	}
	for _, p := range paths {
		if err := checkPath(what, p); err != nil {
			return nil, err
		}
	}
	return append([]string(nil), paths...), nil
}
