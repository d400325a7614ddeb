package bundle

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	agentpb "github.com/coffer-project/coffer/proto/agent"
	ocipb "github.com/coffer-project/coffer/proto/oci"
	"github.com/coffer-project/coffer/shim/hostfiles"
)

// Paths in the guest; Kata's, so that its policies and agents know them.
const (
	guestShared    = "/run/kata-containers/shared/containers"
	guestShm       = "/run/kata-containers/sandbox/shm"
	guestEphemeral = "/run/kata-containers/sandbox/ephemeral"
)

// DefaultShmSize is the size of a pod's /dev/shm in bytes, what other runtimes give.
const DefaultShmSize = 64 << 20

// shmPath is where programs look for shared memory.
const shmPath = "/dev/shm"

// guestTypes are file systems that live in the guest's kernel alone, with the source that names them.
var guestTypes = map[string]string{
	"proc": "proc", "sysfs": "sysfs", "tmpfs": "tmpfs", "devpts": "devpts", "mqueue": "mqueue",
	"cgroup": "cgroup", "cgroup2": "cgroup",
}

// plainOptions are mount options without a value that are passed on.
var plainOptions = []string{
	"ro", "rw", "suid", "nosuid", "dev", "nodev", "exec", "noexec", "sync", "async", "dirsync", "relatime", "norelatime",
	"atime", "noatime", "diratime", "nodiratime", "strictatime", "nostrictatime", "private", "rprivate",
	"rro", "newinstance", "tmpcopyup",
}

// valueOptions are options of tmpfs and devpts that are passed on with their value.
var valueOptions = []string{"size", "mode", "uid", "gid", "nr_inodes", "ptmxmode"}

// ShmStorage is the storage for the CreateSandbox request that backs the /dev/shm of the pod's containers; size is in
// bytes, 0 means DefaultShmSize.
func ShmStorage(size int64) *agentpb.Storage {
	if size <= 0 {
		size = DefaultShmSize
	}
	return &agentpb.Storage{
		Driver:     "ephemeral",
		Source:     "shm",
		Fstype:     "tmpfs",
		Options:    []string{"noexec", "nosuid", "nodev", "mode=1777", fmt.Sprintf("size=%d", size)},
		MountPoint: guestShm,
	}
}

// mountPlan is what becomes of a container's mounts.
type mountPlan struct {
	mounts   []*ocipb.Mount
	files    Files
	storages []*agentpb.Storage
	// writable are destinations of copies that the container may change without the host learning of it.
	writable []string
	// terminationPath is where the container sees the file of its last message.
	terminationPath string
}

// planner turns mounts into a plan. What looks at the host is a field, so that tests need no host.
type planner struct {
	containerID string
	// terminationPath is what an annotation says of it; empty means that the mount's source must tell.
	terminationPath string
	sandboxFiles    map[string]string
	sharedShm       bool
	uids, gids      []specs.LinuxIDMapping // the container's
	readonlyRoot    bool
	emptyDirs       *EmptyDirs
	copy            func(source, guest string) ([]hostfiles.Job, error)
	host            host
	dropped         *dropped
}

func (p *planner) run(mounts []specs.Mount) (*mountPlan, error) {
	out := &mountPlan{}
	for _, m := range mounts {
		if err := p.add(out, m); err != nil {
			return nil, fmt.Errorf("mount %s of container %s: %w", m.Destination, p.containerID, err)
		}
	}
	p.addSandboxFiles(out)
	return out, nil
}

func (p *planner) add(out *mountPlan, m specs.Mount) error {
	if err := checkPath("destination", m.Destination); err != nil {
		return err
	}
	if m.Destination == "/" {
		return fmt.Errorf("a mount over the root file system would hide the image: %w", errdefs.ErrInvalidArgument)
	}
	// In a user namespace the guest maps every mount as the container's own users are mapped.
	if mapped(m) && (!slices.Equal(m.UIDMappings, p.uids) || !slices.Equal(m.GIDMappings, p.gids)) {
		return fmt.Errorf("mounts mapped to others than the container's users are not offered in guests: %w", errdefs.ErrNotImplemented)
	}
	if m.Destination == shmPath && (p.sharedShm || isBind(m)) && !isEmptyDir(m) {
		out.mounts = append(out.mounts, p.shm(m))
		return nil
	}
	if isBind(m) {
		return p.addBind(out, m)
	}
	source, known := guestTypes[m.Type]
	if !known {
		return fmt.Errorf("file systems of type %q cannot be handed to a guest: %w", m.Type, errdefs.ErrInvalidArgument)
	}
	out.mounts = append(out.mounts, &ocipb.Mount{
		Destination: m.Destination, Source: source, Type: m.Type, Options: p.options(m),
	})
	return nil
}

func mapped(m specs.Mount) bool { return len(m.UIDMappings)+len(m.GIDMappings) > 0 }

// isBind: runtimes take the option for the type.
func isBind(m specs.Mount) bool {
	return m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
}

func (p *planner) addBind(out *mountPlan, m specs.Mount) error {
	volume, isEmptyDir, err := findEmptyDir(p.host, m.Source)
	if err != nil {
		return err
	}
	source, fromImage, err := p.addFromImage(out, m)
	if err != nil {
		return err
	}
	if isEmptyDir {
		source = p.addEmptyDir(out, volume)
	} else if !fromImage {
		if source, err = p.addCopy(out, m); err != nil {
			return err
		}
	}
	out.mounts = append(out.mounts, &ocipb.Mount{
		Destination: m.Destination, Source: source, Type: "bind",
		Options: append(append([]string{"rbind"}, p.options(m)...), p.propagation(m, isEmptyDir)...),
	})
	if !isEmptyDir && slices.Contains(out.files.copied, source) {
		return p.addWritableBelow(out, m, source)
	}
	return nil
}

// addCopy plans a copy of the mount's source in the guest and tells where it will be.
func (p *planner) addCopy(out *mountPlan, m specs.Mount) (string, error) {
	writable := !slices.Contains(m.Options, "ro") && !slices.Contains(m.Options, "rro")
	if plugin := persistentVolume(m.Source); plugin != "" && writable {
		return "", fmt.Errorf("what a guest writes to a volume of %s would be lost, because the host's file systems are not shared with "+
			"guests; mount it read-only, which copies it, or use volumeMode Block: %w", plugin, errdefs.ErrFailedPrecondition)
	}
	guest := guestPath(p.containerID, m.Destination)
	known, err := p.host.look(m.Source)
	shared, isShared := p.sandboxFiles[m.Destination]
	switch {
	case errdefs.IsNotFound(err) && isShared:
		// containerd names the files of its own sandboxes even where the sandbox is ours and has none.
		return shared, nil
	case err != nil:
		return "", err
	case known.dir && (livePath.MatchString(m.Source) || known.live && volumePath.MatchString(m.Source)):
		out.files.Live = append(out.files.Live, hostfiles.Volume{HostPath: m.Source, GuestPath: guest})
		return guest, nil
	}
	jobs, err := p.copy(m.Source, guest)
	if err != nil {
		return "", err
	}
	out.files.Jobs = append(out.files.Jobs, jobs...)
	out.files.copied = append(out.files.copied, guest)
	switch {
	case !known.dir && p.isTermination(m):
		out.files.TerminationLog, out.terminationPath = m.Source, m.Destination
	case writable && !slices.Contains(sandboxFileNames, m.Destination):
		out.writable = append(out.writable, m.Destination)
	}
	return guest, nil
}

// isTermination tells the file in which the kubelet will look for the container's last message. containerd passes the
// kubelet's annotation about it only where its configuration says so.
func (p *planner) isTermination(m specs.Mount) bool {
	if p.terminationPath != "" {
		return m.Destination == p.terminationPath
	}
	return terminationPath.MatchString(m.Source)
}

// isEmptyDir tells a volume in memory, which a pod may also use to have a larger /dev/shm than others.
func isEmptyDir(m specs.Mount) bool { return isBind(m) && strings.Contains(m.Source, emptyDirSegment) }

// shm replaces the host's shared memory by the pod's in the guest, or where the pod has none, by the container's own.
// With the sandboxes of containerd the host's is a bind mount, and with ours the default of a container without a pod.
func (p *planner) shm(m specs.Mount) *ocipb.Mount {
	if p.sharedShm {
		return &ocipb.Mount{Destination: m.Destination, Source: guestShm, Type: "bind", Options: []string{"rbind"}}
	}
	return &ocipb.Mount{
		Destination: m.Destination, Source: "tmpfs", Type: "tmpfs",
		Options: []string{"nosuid", "noexec", "nodev", "mode=1777", fmt.Sprintf("size=%d", DefaultShmSize)},
	}
}

// addSandboxFiles gives the container the pod's hosts, hostname and resolv.conf where it brings none itself.
func (p *planner) addSandboxFiles(out *mountPlan) {
	for _, destination := range sandboxFileNames {
		source, ok := p.sandboxFiles[destination]
		if !ok || slices.ContainsFunc(out.mounts, func(m *ocipb.Mount) bool { return m.GetDestination() == destination }) {
			continue
		}
		access := "rw"
		if p.readonlyRoot {
			access = "ro" // as containerd has it for its own
		}
		out.mounts = append(out.mounts, &ocipb.Mount{
			Destination: destination, Source: source, Type: "bind", Options: []string{"rbind", "rprivate", access},
		})
	}
}

// options rebuilds mount options; bind, rbind and the propagation of bind mounts are the caller's.
func (p *planner) options(m specs.Mount) []string {
	var out []string
	for _, option := range m.Options {
		key, _, hasValue := strings.Cut(option, "=")
		switch {
		case option == "bind", option == "rbind", isBind(m) && slices.Contains(propagating, option):
		case slices.Contains(plainOptions, option):
			out = append(out, option)
		case hasValue && (m.Type == "tmpfs" || m.Type == "devpts") && slices.Contains(valueOptions, key):
			out = append(out, option)
		default:
			p.dropped.note("mounts["+m.Destination+"].options["+key+"]", true)
		}
	}
	return out
}

// guestPath names the copy of what is mounted at destination. The middle part keeps copies of different mounts with one
// base name apart; it is made from the destination, so that a repeated request means the same file.
func guestPath(owner, destination string) string {
	sum := sha256.Sum256([]byte(owner + "\x00" + destination))
	return path.Join(guestShared, owner+"-"+hex.EncodeToString(sum[:8])+"-"+fileName(path.Base(destination)))
}

// fileName makes a base name harmless for the pattern that guests check.
func fileName(base string) string {
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '_' || r == '-' {
			return r
		}
		return '_'
	}, base)
	return name[:min(len(name), 64)]
}
