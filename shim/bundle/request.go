package bundle

import (
	"context"
	"fmt"
	"strings"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	agentpb "github.com/coffer-project/coffer/proto/agent"
	"github.com/coffer-project/coffer/proto/lazyregexp"
	ocipb "github.com/coffer-project/coffer/proto/oci"
	"github.com/coffer-project/coffer/shim/hostfiles"
)

// maxHostname is the kernel's limit, in bytes.
const maxHostname = 64

// guestRun is the folder of the guest in which each container has its own.
const guestRun = "/run/kata-containers"

var (
	idPattern      = lazyregexp.New(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)
	versionPattern = lazyregexp.New(`^1\.[0-9]{1,3}\.[0-9]{1,3}(-[0-9A-Za-z.+-]{1,32})?$`)
)

// Options say what a request needs beyond the bundle.
type Options struct {
	// ContainerID names the container in the guest.
	ContainerID string
	// Rootfs are the mounts that containerd's create call carries; one has the volume document.
	Rootfs []*types.Mount
	// Image is what containerd calls the container's image; it counts when no annotation names one.
	Image string
	// HooksRun says that the hooks that have a place on the host are run there.
	HooksRun bool
	// Hostname is the pod's; empty takes the specification's.
	Hostname string
	// SharedPID puts the container into the sandbox's process namespace.
	SharedPID bool
	// SharedShm says that the sandbox was created with ShmStorage, which /dev/shm then is.
	SharedShm bool
	// Sysctls are the pod's; what the container's own specification says of the same variable comes first.
	Sysctls map[string]string
	// SandboxFiles are the pod's files in the guest by destination, from SandboxJobs.
	SandboxFiles map[string]string
	// EmptyDirs are the pod's, the same for all its containers; nil where there is no pod.
	EmptyDirs *EmptyDirs
	// Limits bound what is copied of each mount.
	Limits hostfiles.Limits
	// Users are the names behind user ids, from LoadUsers.
	Users Users
	// StrictGroups says that the pod asks for strict supplemental groups.
	StrictGroups bool
	// Devices are handed to the guest with the container.
	Devices []*agentpb.Device
	// PCIDevices are the physical ones of the container; nil in a pod without any.
	PCIDevices []PCIDevice
}

// CreateRequest makes the request that creates the container, and says which files the guest needs before it. What the
// guest gets no part of is logged once. Errors are errdefs.ErrInvalidArgument for a broken specification,
// ErrNotImplemented for what guests do not offer, and ErrFailedPrecondition for a host or volume that must change first.
func (b *Bundle) CreateRequest(ctx context.Context, opts Options) (*agentpb.CreateContainerRequest, *Files, error) {
	return b.createRequest(ctx, opts, opts.Limits.Plan, realHost{})
}

func (b *Bundle) createRequest(
	ctx context.Context, opts Options, plan func(source, guest string) ([]hostfiles.Job, error), host host,
) (*agentpb.CreateContainerRequest, *Files, error) {
	id := opts.ContainerID
	if !idPattern.MatchString(id) {
		return nil, nil, fmt.Errorf("container id %.200q is not valid: %w", id, errdefs.ErrInvalidArgument)
	}
	if opts.EmptyDirs == nil {
		opts.EmptyDirs = &EmptyDirs{}
	}
	var d dropped
	rootfs := guestRun + "/" + id + "/rootfs"
	annotations := pick("annotations", b.spec.Annotations, annotationPrefixes, &d)
	annotate(annotations, opts.PCIDevices, &d)
	for _, device := range opts.PCIDevices {
		opts.Devices = append(opts.Devices, device.Request())
	}
	image, err := b.imageStorage(opts.Rootfs, opts.Image, rootfs, annotations, &d)
	if err != nil {
		return nil, nil, fmt.Errorf("image of container %s: %w", id, err)
	}
	mounts, err := (&planner{
		containerID: id, terminationPath: annotations[annotationTermination], sandboxFiles: opts.SandboxFiles,
		sharedShm: opts.SharedShm, readonlyRoot: b.spec.Root.Readonly, emptyDirs: opts.EmptyDirs, uids: b.spec.Linux.UIDMappings, gids: b.spec.Linux.GIDMappings,
		copy: plan, host: host, dropped: &d,
	}).run(b.spec.Mounts)
	if err != nil {
		return nil, nil, err
	}
	if mounts.terminationPath != "" {
		annotations[annotationTermination] = mounts.terminationPath
	}
	if opts.Users.strict(b.spec.Process.User, opts.StrictGroups) {
		annotations[annotationGroups] = groupsStrict
	}
	spec, err := b.guestSpec(opts, rootfs, annotations, mounts.mounts, &d)
	if err != nil {
		return nil, nil, fmt.Errorf("specification of container %s: %w", id, err)
	}
	d.warn(ctx)
	if len(mounts.writable) > 0 {
		log.G(ctx).WithField("mounts", strings.Join(mounts.writable, " ")).
			Warn("container may write to copies of the host's files, the host will not see it")
	}
	return &agentpb.CreateContainerRequest{
		ContainerId:  id,
		ExecId:       id,
		Devices:      opts.Devices,
		Storages:     append([]*agentpb.Storage{image}, mounts.storages...),
		OCI:          spec,
		SandboxPidns: opts.SharedPID,
	}, &mounts.files, nil
}

func (b *Bundle) guestSpec(
	opts Options, rootfs string, annotations map[string]string, mounts []*ocipb.Mount, d *dropped,
) (*ocipb.Spec, error) {
	in := b.spec
	if !versionPattern.MatchString(in.Version) {
		return nil, fmt.Errorf("version %.64q is not supported: %w", in.Version, errdefs.ErrInvalidArgument)
	}
	d.note("domainname", in.Domainname != "")
	if h := in.Hooks; h != nil {
		d.note("hooks", !opts.HooksRun)
		d.note("hooks.createContainer", len(h.CreateContainer) > 0)
		d.note("hooks.startContainer", len(h.StartContainer) > 0)
		d.note("hooks.poststart", len(h.Poststart) > 0)
	}
	d.note("solaris", in.Solaris != nil)
	d.note("windows", in.Windows != nil)
	d.note("vm", in.VM != nil)
	d.note("zos", in.ZOS != nil)
	process, err := rebuildProcess(in.Process, opts.Users, d)
	if err != nil {
		return nil, err
	}
	linux, err := rebuildLinux(opts, in.Linux, mounts, d)
	if err != nil {
		return nil, err
	}
	hostname := opts.Hostname
	if hostname == "" {
		hostname = in.Hostname
	}
	if len(hostname) > maxHostname {
		return nil, fmt.Errorf("hostname of %d bytes is too long: %w", len(hostname), errdefs.ErrInvalidArgument)
	}
	return &ocipb.Spec{
		Version:     in.Version,
		Process:     process,
		Root:        &ocipb.Root{Path: rootfs, Readonly: in.Root.Readonly},
		Hostname:    hostname,
		Mounts:      mounts,
		Annotations: annotations,
		Linux:       linux,
	}, nil
}
