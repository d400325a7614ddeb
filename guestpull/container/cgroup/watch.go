package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Watcher reports each change of one file of a control group. The kernel announces changes of *.events files by inotify.
type Watcher struct {
	f *os.File
}

// Watch begins to watch a file such as memory.events. Close it.
func Watch(file string) (*Watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", filepath.Base(file), err)
	}
	if _, err := unix.InotifyAddWatch(fd, file, unix.IN_MODIFY); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("watch %s: %w", filepath.Base(file), err)
	}
	return &Watcher{f: os.NewFile(uintptr(fd), file)}, nil
}

// Wait returns after the next change, or with false when the watcher is closed or the group is gone.
func (w *Watcher) Wait() bool {
	buf := make([]byte, 4096)
	n, err := w.f.Read(buf)
	if err != nil || n < unix.SizeofInotifyEvent {
		return false
	}
	// IN_IGNORED: the kernel has removed the watch together with the file.
	mask := uint32(buf[4]) | uint32(buf[5])<<8 | uint32(buf[6])<<16 | uint32(buf[7])<<24
	return mask&unix.IN_IGNORED == 0
}

// Close ends the watch; a Wait in progress returns false.
func (w *Watcher) Close() error { return w.f.Close() }

// OOMKills returns how often the kernel has killed a process of the group at path for lack of memory.
func (r Root) OOMKills(path string) uint64 {
	files := reader{dir: r.Dir(path)}
	return files.table("memory.events")["oom_kill"]
}

// waitEmpty returns when no process is left in the group at dir.
func waitEmpty(ctx context.Context, dir string) error {
	w, err := Watch(filepath.Join(dir, "cgroup.events"))
	if err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return err
	}
	defer w.Close()
	stop := context.AfterFunc(ctx, func() { _ = w.f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		files := reader{dir: dir}
		if files.table("cgroup.events")["populated"] == 0 {
			return nil
		}
		if !w.Wait() {
			if err := ctx.Err(); err != nil {
				return fmt.Errorf("processes remain: %w", err)
			}
			return nil
		}
	}
}
