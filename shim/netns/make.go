package netns

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Namespace is a new network namespace. It has a path, which outlives this process, and until Close a thread of this
// process is in it: programs that are told a process and look at /proc/<id>/ns/net find the namespace by that.
type Namespace struct {
	path string
	tid  int

	once sync.Once
	end  chan struct{} // closed when the thread may go
}

// New makes a namespace and binds it to a new file at path. It fails without leaving anything behind. The caller calls
// Close; Remove is for a later process when this one was killed.
func New(path string) (_ *Namespace, retErr error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o400)
	if err != nil {
		return nil, fmt.Errorf("make network namespace: %w", err)
	}
	file.Close()
	n := &Namespace{path: path, end: make(chan struct{})}
	made := make(chan error)
	Thread(func() {
		n.tid = unix.Gettid()
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
		}
		made <- err
		if err == nil {
			<-n.end
		}
	})
	if err := <-made; err != nil {
		return nil, errors.Join(fmt.Errorf("make network namespace %s: %w", path, err), os.Remove(path))
	}
	return n, nil
}

// TID is a thread of this process that is in the namespace until Close.
func (n *Namespace) TID() int { return n.tid }

// Close removes the namespace's path and lets its thread go. It is idempotent. The namespace itself goes with the last
// process in it.
func (n *Namespace) Close() error {
	n.once.Do(func() { close(n.end) })
	return Remove(n.path)
}

// Remove removes the path of a namespace that New made in an earlier process. It is idempotent.
func Remove(path string) error {
	// A path that is no mount (a process killed in New) is EINVAL, one that is not there ENOENT.
	if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove network namespace: unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove network namespace: %w", err)
	}
	return nil
}
