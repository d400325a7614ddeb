// Package netns runs code inside a network namespace.
//
// A namespace belongs to an OS thread, and a Go thread that entered one must never be given back to the scheduler: the
// next goroutine on it would be on the wrong network. So every call spends one thread, which ends with the call.
package netns

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Do calls fn on a thread that is in the namespace at path (such as /run/netns/x or /proc/1/ns/net), and returns its
// error. An empty path means the caller's own namespace. Sockets and devices that fn opens stay in the namespace;
// goroutines that it starts do not inherit it, processes do. It fails with errdefs.ErrNotFound when path is gone.
func Do(path string, fn func() error) error {
	if path == "" {
		return fn()
	}
	result := make(chan error, 1)
	Thread(func() {
		err := Enter(path)
		if err == nil {
			err = fn()
		}
		result <- err
	})
	return <-result
}

// Thread calls fn, without waiting for it, on an OS thread that no other goroutine uses before or after: fn may change
// what belongs to a thread. It is never the process's first thread, which cannot end before the process does and would
// keep a namespace alive until then.
func Thread(fn func()) {
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != os.Getpid() {
			fn() // and the thread ends with this goroutine, which never unlocks it
			return
		}
		// While this goroutine holds the first thread, another one cannot get it.
		locked := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(locked)
			fn()
		}()
		<-locked
		runtime.UnlockOSThread()
	}()
}

// Enter moves the calling thread, which must be one of Thread's, into the namespace at path.
func Enter(path string) error {
	file, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("network namespace %s: %w", path, errdefs.ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer file.Close()
	if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	return nil
}
