package sandbox

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/coffer-project/coffer/guestpull/container/mount"
	agentpb "github.com/coffer-project/coffer/proto/agent"
	"github.com/coffer-project/coffer/proto/lazyregexp"
)

// maxSharedStorages bounds the volumes of one pod.
const maxSharedStorages = 256

// mountFlags are the options that a volume in memory may have, besides size and mode.
var mountFlags = map[string]uintptr{
	"ro": unix.MS_RDONLY, "rw": 0, "defaults": 0,
	"nosuid": unix.MS_NOSUID, "nodev": unix.MS_NODEV, "noexec": unix.MS_NOEXEC,
	"noatime": unix.MS_NOATIME, "relatime": unix.MS_RELATIME,
}

var (
	octal = lazyregexp.New(`^[0-7]{3,4}$`)
	size  = lazyregexp.New(`^[0-9]{1,15}[kKmMgG%]?$`)
)

// defaultShm is the shared memory of a pod for which the host asked for none: what container engines give.
var defaultShm = &agentpb.Storage{Driver: "ephemeral", Source: "shm", Fstype: "tmpfs",
	Options: []string{"noexec", "nosuid", "nodev", "mode=1777", "size=67108864"}}

// mountAll mounts the storages that come with the sandbox, and its shared memory. The caller holds the lock.
func (s *Sandbox) mountAll(ctx context.Context, storages []*agentpb.Storage) error {
	for _, storage := range storages {
		if err := s.mountLocked(ctx, storage); err != nil {
			return err
		}
	}
	shm := filepath.Join(s.dir(), "shm")
	if _, there := s.storages[shm]; there {
		return nil
	}
	storage := proto.CloneOf(defaultShm)
	storage.MountPoint = shm
	return s.mountLocked(ctx, storage)
}

// Mount makes a storage of the pod present, in guest memory or on the scratch disk. It stays for the life of the pod; several containers may ask for the same
// one. InvalidArgument: it is of a kind that this guest does not offer, or differs from the one that is there.
func (s *Sandbox) Mount(ctx context.Context, storage *agentpb.Storage) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state != StateCreated {
		return fmt.Errorf("sandbox is %s: %w", s.state, errdefs.ErrFailedPrecondition)
	}
	return s.mountLocked(ctx, storage)
}

func (s *Sandbox) mountLocked(ctx context.Context, storage *agentpb.Storage) error {
	point := storage.GetMountPoint()
	if there, ok := s.storages[point]; ok {
		if !proto.Equal(there, storage) {
			return fmt.Errorf("storage at %.200q differs from the one that is mounted there: %w", point, errdefs.ErrInvalidArgument)
		}
		if storage.GetDriver() != "local" {
			return nil // a folder may have been removed by a container since
		}
	} else if len(s.storages) >= maxSharedStorages {
		return fmt.Errorf("pod has %d storages: %w", maxSharedStorages, errdefs.ErrResourceExhausted)
	}
	v, err := parseVolume(storage)
	if err != nil {
		return err
	}
	root := s.dir()
	if !mount.Below(root, point) {
		root = s.sharedDir()
	}
	if err := s.makeVolume(ctx, root, point, v); err != nil {
		return err
	}
	s.storages[point] = proto.CloneOf(storage)
	return nil
}

// volume is a checked storage.
type volume struct {
	tmpfs bool // a file system of its own; else a plain folder
	flags uintptr
	data  []string
	mode  os.FileMode
	group int // owner of the folder's files, -1: not set
}

func parseVolume(storage *agentpb.Storage) (volume, error) {
	v := volume{mode: 0o777, group: -1}
	switch storage.GetDriver() {
	case "ephemeral":
		if storage.GetFstype() != "tmpfs" {
			return v, fmt.Errorf("ephemeral storage of type %.32q: only tmpfs is offered: %w", storage.GetFstype(), errdefs.ErrInvalidArgument)
		}
		v.tmpfs = true
	case "local":
	default:
		return v, fmt.Errorf("storage driver %.32q is not offered by this guest: %w", storage.GetDriver(), errdefs.ErrInvalidArgument)
	}
	for _, option := range storage.GetOptions() {
		if err := v.option(option); err != nil {
			return v, err
		}
	}
	if g := storage.GetFsGroup(); g != nil {
		v.group = int(g.GetGroupId())
	}
	if v.tmpfs {
		v.data = append(v.data, "mode="+strconv.FormatUint(uint64(v.mode), 8))
	}
	return v, nil
}

func (v *volume) option(option string) error {
	if flag, ok := mountFlags[option]; ok {
		v.flags |= flag
		return nil
	}
	key, value, _ := strings.Cut(option, "=")
	switch {
	case key == "mode" && octal.MatchString(value):
		mode, err := strconv.ParseUint(value, 8, 32)
		if err != nil {
			return fmt.Errorf("storage option %.64q: %w", option, errdefs.ErrInvalidArgument)
		}
		v.mode = os.FileMode(mode)
		return nil
	case key == "size" && size.MatchString(value):
		if !unlimited(value) {
			v.data = append(v.data, option)
		}
		return nil
	case key == "fsgid":
		group, err := strconv.ParseUint(value, 10, 31)
		if err != nil {
			return fmt.Errorf("storage option %.64q: %w", option, errdefs.ErrInvalidArgument)
		}
		v.group = int(group)
		return nil
	}
	return fmt.Errorf("storage option %.64q is not allowed: %w", option, errdefs.ErrInvalidArgument)
}

// makeVolume makes the folder at point and what is mounted on it. A plain folder that is there already, or a file, is left as it is: it may
// be part of another volume, named by a subPath, where a container has made it.
func (s *Sandbox) makeVolume(ctx context.Context, root, point string, v volume) error {
	if v.tmpfs {
		return s.makeMemory(root, point, v)
	}
	if done, err := s.makeOnDisk(ctx, root, point, v); done || err != nil {
		return err
	}
	mode := fileMode(v.mode) // of missing parents, too, as kubelet makes the folders of a subPath
	if m, _, rel := s.memoryOf(point); m != nil {
		made, err := mount.MkdirIn(m.root, rel, mode, mode)
		if err != nil || !made || v.group < 0 {
			return err
		}
		return mount.ChownIn(m.root, rel, v.group, fileMode(v.mode|0o2770))
	}
	made, err := mount.MkdirBelow(root, point, mode, mode)
	if err != nil || !made || v.group < 0 {
		return err
	}
	// As kubelet does for a volume's group: its members may write, and what they create belongs to the group.
	return mount.Chown(root, point, v.group, fileMode(v.mode|0o2770))
}

// makeMemory mounts a file system of its own.
func (s *Sandbox) makeMemory(root, point string, v volume) error {
	if err := s.checkOverlap(point); err != nil {
		return err
	}
	if _, err := mount.MkdirBelow(root, point, 0o755, fileMode(v.mode)); err != nil {
		return err
	}
	if err := mount.Tmpfs(root, point, v.flags, strings.Join(v.data, ",")); err != nil {
		return err
	}
	return s.addMemory(root, point, v)
}

// unlimited tells that a size could never be filled, because it is more than the guest's memory, or because it is 0, which
// is the kernel's word for no limit. kubelet gives a volume without a limit of its own the size of the node's memory; the
// kernel's default, half of the guest's, then ends a program with a full file system instead of the machine without memory.
func unlimited(value string) bool {
	digits := strings.TrimRight(value, "kKmMgG%")
	number, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || number == 0 {
		return true
	}
	unit := strings.ToLower(value[len(digits):])
	if unit == "%" {
		return number > 100
	}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) != nil {
		return false
	}
	// Not the number is multiplied, which could overflow: the memory is divided.
	memory := info.Totalram * uint64(info.Unit)
	return number > memory>>map[string]uint{"": 0, "k": 10, "m": 20, "g": 30}[unit]
}

// fileMode turns the octal mode of an option into Go's form.
func fileMode(mode os.FileMode) os.FileMode {
	out := mode & os.ModePerm
	for bit, flag := range map[os.FileMode]os.FileMode{0o1000: os.ModeSticky, 0o2000: os.ModeSetgid, 0o4000: os.ModeSetuid} {
		if mode&bit != 0 {
			out |= flag
		}
	}
	return out
}
