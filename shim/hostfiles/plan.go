package hostfiles

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Plan lists the jobs that make a copy of the host's file or folder source at guest, parents before children. Nothing is
// read but the folders. Errors are errdefs.ErrNotFound where there is no source, ErrFailedPrecondition beyond the limits,
// and ErrInvalidArgument for what no copy can stand for.
func (l Limits) Plan(source, guest string) ([]Job, error) {
	l = l.withDefaults()
	// A volume's source may be a link (the kubelet resolves subPath so); links inside a volume are copied as links.
	resolved, err := filepath.EvalSymlinks(source)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("mount source %s does not exist on this host: %w", source, errdefs.ErrNotFound)
		}
		return nil, fmt.Errorf("resolve mount source: %w", err)
	}
	if err := refuseKernel(resolved); err != nil {
		return nil, err
	}
	info, err := os.Lstat(resolved)
	if err != nil {
		return nil, fmt.Errorf("look at mount source: %w", err)
	}
	if info.IsDir() {
		root, err := os.OpenRoot(resolved)
		if err != nil {
			return nil, fmt.Errorf("open volume: %w", err)
		}
		defer root.Close()
		return l.planTree(root, resolved, guest)
	}
	job, err := l.planEntry(resolved, guest, info)
	if err != nil {
		return nil, err
	}
	job.HostPath = resolved
	return []Job{job}, nil
}

// PlanFolder is Plan for a folder in an open one. A link in its place fails with errdefs.ErrFailedPrecondition.
func (l Limits) PlanFolder(parent *os.Root, name, guest string) ([]Job, error) {
	info, err := parent.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("folder %s of volume %s: %w", name, parent.Name(), errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("look at volume: %w", err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("%s of volume %s is no folder: %w", name, parent.Name(), errdefs.ErrFailedPrecondition)
	}
	root, err := parent.OpenRoot(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("folder %s of volume %s: %w", name, parent.Name(), errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("open volume: %w", err)
	}
	defer root.Close()
	return l.withDefaults().planTree(root, filepath.Join(parent.Name(), name), guest)
}

// planTree walks a folder; volume is its path.
func (l Limits) planTree(root *os.Root, volume, guest string) ([]Job, error) {
	var jobs []Job
	var total int64
	err := fs.WalkDir(root.FS(), ".", func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if len(jobs) == l.Entries {
			return l.tooLarge(volume, l.measure(root))
		}
		if strings.Count(name, "/") >= l.Depth {
			return fmt.Errorf("%s has folders deeper than %d levels: %w", volume, l.Depth, errdefs.ErrFailedPrecondition)
		}
		// Not entry.Info, which would take the way by names.
		info, err := root.Lstat(name)
		if err != nil {
			return err
		}
		job, err := l.planEntry(filepath.Join(volume, name), path.Join(guest, name), info)
		if err != nil {
			return err
		}
		switch {
		case info.Mode().IsRegular():
			if total += info.Size(); total > l.Bytes {
				return l.tooLarge(volume, l.measure(root))
			}
			job.Volume, job.HostPath = volume, name
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := root.Readlink(name)
			if err != nil {
				return err
			}
			job.Content = []byte(target)
		}
		jobs = append(jobs, job)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("plan copy of volume %s: %w", volume, err)
	}
	return jobs, nil
}

// planEntry makes a job without its content; name is for messages.
func (l Limits) planEntry(name, guest string, info fs.FileInfo) (Job, error) {
	job := Job{GuestPath: guest, limit: l.Bytes}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return job, fmt.Errorf("owner of %s is unknown: %w", name, errdefs.ErrInternal)
	}
	job.Mode, job.UID, job.GID = st.Mode, st.Uid, st.Gid
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR, unix.S_IFLNK:
	case unix.S_IFREG:
		return job, l.checkFile(name, info.Size())
	default:
		return job, fmt.Errorf("%s is a %s, which cannot be handed to a guest; remove the mount from the pod: %w",
			name, kind(info.Mode()), errdefs.ErrInvalidArgument)
	}
	return job, nil
}

func kind(mode fs.FileMode) string {
	switch {
	case mode&fs.ModeSocket != 0:
		return "socket"
	case mode&fs.ModeDevice != 0:
		return "device"
	case mode&fs.ModeNamedPipe != 0:
		return "named pipe"
	default:
		return "special file"
	}
}

// kernelTypes are file systems in which a kernel shows itself.
var kernelTypes = map[int64]string{
	unix.PROC_SUPER_MAGIC: "proc", unix.SYSFS_MAGIC: "sysfs", unix.CGROUP_SUPER_MAGIC: "cgroup", unix.CGROUP2_SUPER_MAGIC: "cgroup",
	unix.DEBUGFS_MAGIC: "debugfs", unix.TRACEFS_MAGIC: "tracefs", unix.SECURITYFS_MAGIC: "securityfs", unix.BPF_FS_MAGIC: "bpf",
	unix.DEVPTS_SUPER_MAGIC: "devpts",
}

// refuseKernel refuses what the host's kernel shows of itself: a copy would be dead, and a guest has a kernel of its own.
func refuseKernel(source string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(source, &st); err != nil {
		return fmt.Errorf("look at mount source %s: %w", source, err)
	}
	if name, is := kernelTypes[st.Type]; is {
		return fmt.Errorf("%s is a view into the host's kernel (%s), which a guest has no part in; remove the mount from the pod: %w",
			source, name, errdefs.ErrInvalidArgument)
	}
	return nil
}

// FolderJob makes a folder like the one that is open, without what is in it.
func FolderJob(folder *os.Root, guest string) (Job, error) {
	info, err := folder.Lstat(".")
	if err != nil {
		return Job{}, fmt.Errorf("look at volume: %w", err)
	}
	return Limits{}.planEntry(folder.Name(), guest, info)
}
