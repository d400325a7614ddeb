package bundle

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// planCopy lists the jobs that make a copy of the host's file or folder source at guest. Nothing is read but the
// folders. Sockets, devices and pipes are refused: a copy of them would not do what they do.
func planCopy(source, guest string) ([]CopyJob, error) { return copyLimits.plan(source, guest) }

func (l limits) plan(source, guest string) ([]CopyJob, error) {
	// A volume's source may be a link (the kubelet resolves subPath so); links inside a volume are copied as links.
	resolved, err := filepath.EvalSymlinks(source)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("mount source %s does not exist on this host: %w", source, errdefs.ErrNotFound)
		}
		return nil, fmt.Errorf("resolve mount source: %w", err)
	}
	info, err := os.Lstat(resolved)
	if err != nil {
		return nil, fmt.Errorf("look at mount source: %w", err)
	}
	if info.IsDir() {
		return l.planTree(resolved, guest)
	}
	job, err := l.planEntry(resolved, guest, info)
	if err != nil {
		return nil, err
	}
	return []CopyJob{job}, nil
}

// planTree walks a folder, parents before children.
func (l limits) planTree(root, guest string) ([]CopyJob, error) {
	var jobs []CopyJob
	var total int64
	err := filepath.WalkDir(root, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if len(jobs) == l.entries {
			return tooLarge(root, "more entries", fmt.Sprintf("%d entries", l.entries))
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		if strings.Count(rel, "/") >= l.depth {
			return tooLarge(root, "deeper folders", fmt.Sprintf("%d levels", l.depth))
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		job, err := l.planEntry(name, path.Join(guest, rel), info)
		if err != nil {
			return err
		}
		if info.Mode().IsRegular() {
			if total += info.Size(); total > l.tree {
				return tooLarge(root, "more data", fmt.Sprintf("%d bytes", l.tree))
			}
		}
		jobs = append(jobs, job)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("plan copy of volume %s: %w", root, err)
	}
	return jobs, nil
}

func (l limits) planEntry(name, guest string, info fs.FileInfo) (CopyJob, error) {
	job := CopyJob{GuestPath: guest}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return job, fmt.Errorf("owner of %s is unknown: %w", name, errdefs.ErrInternal)
	}
	job.Mode, job.UID, job.GID = st.Mode, st.Uid, st.Gid
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
	case unix.S_IFREG:
		if err := l.checkFile(name, info.Size()); err != nil {
			return job, err
		}
		job.HostPath = name
	case unix.S_IFLNK:
		target, err := os.Readlink(name)
		if err != nil {
			return job, err
		}
		job.Content = []byte(target)
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

// groupOf is the groupFunc of a real host.
func groupOf(source string) uint32 {
	info, err := os.Stat(source)
	if err != nil {
		return 0
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0
	}
	return st.Gid
}

func readerOf(data []byte) io.Reader { return bytes.NewReader(data) }
