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
func planCopy(source, guest string) ([]CopyJob, error) {
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
		return planTree(resolved, guest)
	}
	job, err := planEntry(resolved, guest, info)
	if err != nil {
		return nil, err
	}
	return []CopyJob{job}, nil
}

// planTree walks a folder, parents before children.
func planTree(root, guest string) ([]CopyJob, error) {
	var jobs []CopyJob
	var total int64
	err := filepath.WalkDir(root, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if len(jobs) == maxEntries {
			return tooLarge(root, "more entries", fmt.Sprintf("%d entries", maxEntries))
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		if strings.Count(rel, "/") >= maxDepth {
			return tooLarge(root, "deeper folders", fmt.Sprintf("%d levels", maxDepth))
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		job, err := planEntry(name, path.Join(guest, rel), info)
		if err != nil {
			return err
		}
		if info.Mode().IsRegular() {
			if total += info.Size(); total > maxTree {
				return tooLarge(root, "more data", fmt.Sprintf("%d bytes", maxTree))
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

func planEntry(name, guest string, info fs.FileInfo) (CopyJob, error) {
	job := CopyJob{GuestPath: guest}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return job, fmt.Errorf("owner of %s is unknown: %w", name, errdefs.ErrInternal)
	}
	job.Mode, job.UID, job.GID = st.Mode, st.Uid, st.Gid
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
	case unix.S_IFREG:
		if info.Size() > maxFile {
			return job, tooLarge(name, fmt.Sprintf("file of %d bytes", info.Size()), fmt.Sprintf("%d bytes a file", maxFile))
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

func readerOf(data []byte) io.Reader { return bytes.NewReader(data) }
