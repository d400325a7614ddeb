package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/guestpull/container"
	"github.com/coffer-project/coffer/guestpull/container/mount"
	"github.com/coffer-project/coffer/guestpull/container/spec"
)

// makeNamespaces makes the pod's UTS and IPC namespaces, and its pid namespace when it is shared. The caller holds the lock.
func (s *Sandbox) makeNamespaces(name string, sharePID bool) error {
	dir := filepath.Join(s.dir(), "ns")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make namespace folder: %w", err)
	}
	s.spaces.UTS, s.spaces.IPC = filepath.Join(dir, "uts"), filepath.Join(dir, "ipc")
	for _, path := range []string{s.spaces.UTS, s.spaces.IPC} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			return fmt.Errorf("make namespace file: %w", err)
		}
		s.undo = append(s.undo, func(context.Context) error {
			if err := mount.Unmount(path); err != nil {
				return err
			}
			return os.Remove(path)
		})
	}
	if err := onOwnThread(func() error { return unshareInto(s.spaces, name) }); err != nil {
		return err
	}
	if !sharePID {
		return nil
	}
	held, err := s.Holder()
	if err != nil {
		return fmt.Errorf("start holder of the pid namespace: %w", err)
	}
	s.spaces.PID = "/proc/" + strconv.Itoa(held.PID) + "/ns/pid"
	s.undo = append(s.undo, endHolder(held))
	return nil
}

// mapUsers makes a user namespace for the pod's containers. Namespaces of the other kinds belong to a user namespace,
// whose root may change them, so the containers in it get their own. The caller holds the lock.
func (s *Sandbox) mapUsers(users spec.Users) error {
	if s.users.Mapped() {
		if s.users != users {
			return fmt.Errorf("pod has a user namespace with other mappings: %w", errdefs.ErrFailedPrecondition)
		}
		return nil
	}
	held, err := s.UserHolder(users)
	if err != nil {
		return fmt.Errorf("start holder of the user namespace: %w", err)
	}
	s.undo = append(s.undo, endHolder(held))
	dir := "/proc/" + strconv.Itoa(held.PID) + "/ns/"
	if s.hostname != "" {
		if err := onOwnThread(func() error { return setHostname(dir+"uts", s.hostname) }); err != nil {
			return err
		}
	}
	s.users = users
	s.mapped = container.Namespaces{UTS: dir + "uts", IPC: dir + "ipc", PID: dir + "pid", User: dir + "user"}
	if s.spaces.PID == "" {
		s.mapped.PID = "" // the pod was made without one that is shared
	}
	return nil
}

// setHostname moves the calling thread into a UTS namespace and names it.
func setHostname(uts, name string) error {
	space, err := os.Open(uts)
	if err != nil {
		return err
	}
	defer space.Close()
	if err := unix.Setns(int(space.Fd()), unix.CLONE_NEWUTS); err != nil {
		return fmt.Errorf("enter UTS namespace: %w", err)
	}
	if err := unix.Sethostname([]byte(name)); err != nil {
		return fmt.Errorf("set hostname: %w", err)
	}
	return nil
}

// endHolder kills the process and waits for its end.
func endHolder(held container.Process) func(context.Context) error {
	return func(ctx context.Context) error {
		if err := unix.Kill(held.PID, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("end holder of namespaces: %w", err)
		}
		select {
		case <-held.Exit:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("end holder of namespaces: %w", ctx.Err())
		}
	}
}

// unshareInto gives the calling thread new namespaces, and keeps them by mounting them on files: no process has to live in them.
func unshareInto(spaces container.Namespaces, name string) error {
	if err := unix.Unshare(unix.CLONE_NEWUTS | unix.CLONE_NEWIPC); err != nil {
		return fmt.Errorf("make namespaces: %w", err)
	}
	if name != "" {
		if err := unix.Sethostname([]byte(name)); err != nil {
			return fmt.Errorf("set hostname: %w", err)
		}
	}
	for kind, path := range map[string]string{"uts": spaces.UTS, "ipc": spaces.IPC} {
		if err := unix.Mount("/proc/thread-self/ns/"+kind, path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("keep %s namespace: %w", kind, err)
		}
	}
	return nil
}

// onOwnThread runs f on a thread that ends with it, so that what f does to the thread affects nothing else.
func onOwnThread(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			// The process's first thread never ends, and /proc/self is about it. It is kept busy while another one does the work.
			defer runtime.UnlockOSThread()
			result <- onOwnThread(f)
			return
		}
		// Never unlocked: the runtime then ends the thread with the goroutine.
		result <- f()
	}()
	return <-result
}
