// Package jail takes away from a process all that unpacking a layer does not need: files outside of one directory, the
// network, other processes, new programs, and nearly all capabilities and system calls. What a process that was taken over
// by a hostile layer can still do is to write nonsense into that layer's own directory.
package jail

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrNoLandlock says that the kernel has no Landlock, or one that is too old for links between directories. All other walls
// stand then.
var ErrNoLandlock = errors.New("kernel has no Landlock of version 2 or later")

// Options are what a process keeps.
type Options struct {
	// Dir is an open directory, which becomes the root directory.
	Dir int
	// Devices leaves the right to make device nodes.
	Devices bool
}

// Enter puts the whole process into the jail for good. Descriptors that are open stay so, but for Options.Dir. After an
// error other than ErrNoLandlock the process is good for nothing and must end.
func Enter(opts Options) error {
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"be the first to end when memory is short", func() error { return os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0) }},
		{"write no core", func() error { return unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}) }},
		{"keep others out of its memory", func() error { return unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) }},
		{"change the root directory", func() error { return errors.Join(unix.Fchdir(opts.Dir), unix.Chroot(".")) }},
		{"close the directory", func() error { return unix.Close(opts.Dir) }},
		{"refuse new privileges", noNewPrivileges},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
	}
	unix.Umask(0)
	landlockErr := landlock()
	if landlockErr != nil && !errors.Is(landlockErr, ErrNoLandlock) {
		return fmt.Errorf("confine it by Landlock: %w", landlockErr)
	}
	if err := dropCapabilities(opts.Devices); err != nil {
		return fmt.Errorf("give up capabilities: %w", err)
	}
	if err := filterSyscalls(); err != nil {
		return fmt.Errorf("confine it by seccomp: %w", err)
	}
	return landlockErr
}

// everywhere makes a system call on all threads of the process.
//
//go:uintptrescapes
func everywhere(number, a, b, c, d, e uintptr) error {
	_, _, errno := syscall.AllThreadsSyscall6(number, a, b, c, d, e, 0)
	if errors.Is(errno, syscall.ENOTSUP) {
		return fmt.Errorf("program was built with cgo, whose threads cannot be reached: build it with CGO_ENABLED=0 (%s)", runtime.Version())
	}
	if errno != 0 {
		return errno
	}
	return nil
}

func noNewPrivileges() error {
	return everywhere(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
}
