// Command program is a worker, for tests: programs under test cannot be workers themselves where they link cgo. With
// "probe" it enters the jail with directory 3 and says what it can still do there.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/guestpull/unpack/worker"
	"github.com/coffer-project/coffer/guestpull/unpack/worker/jail"
)

func main() {
	switch {
	case len(os.Args) == 1:
		os.Exit(worker.Main())
	case len(os.Args) == 2 && os.Args[1] == "probe":
		probe()
	default:
		os.Exit(2)
	}
}

// probe prints, by name, the error of each attempt; empty ones succeeded.
func probe() {
	result := map[string]string{}
	err := jail.Enter(jail.Options{Dir: 3})
	if err != nil && !errors.Is(err, jail.ErrNoLandlock) {
		result["enter"] = err.Error()
	}
	parent := os.Getppid()
	for name, try := range map[string]func() error{
		"write file":        func() error { return os.WriteFile("/inside", []byte("x"), 0o644) },
		"trusted attribute": func() error { return unix.Lsetxattr("/", "trusted.overlay.opaque", []byte("y"), 0) },
		"whiteout":          func() error { return unix.Mknodat(unix.AT_FDCWD, "/gone", unix.S_IFCHR, 0) },
		"foreign owner":     func() error { return unix.Fchownat(unix.AT_FDCWD, "/", 7, 8, 0) },
		"know its own ids": func() error {
			if uid, gid := os.Geteuid(), os.Getegid(); uid != 0 || gid != 0 {
				return fmt.Errorf("they seem to be %d and %d", uid, gid)
			}
			return nil
		},
		"see outside":       func() error { _, err := os.Stat("/etc/passwd"); return err },
		"climb out":         func() error { _, err := os.Stat("/../../../../../../etc/passwd"); return err },
		"socket":            func() error { _, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0); return err },
		"signal the parent": func() error { return unix.Kill(parent, 0) },
		"signal a thread":   func() error { return unix.Tgkill(parent, parent, 0) },
		"trace the parent":  func() error { return unix.PtraceAttach(parent) },
		"run a program":     func() error { return syscall.Exec("/inside", nil, nil) },
		"fork": func() error {
			_, _, errno := unix.RawSyscall(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0)
			return number(errno)
		},
		"make code": func() error {
			_, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_ANON|unix.MAP_PRIVATE)
			return err
		},
		"mount":           func() error { return unix.Mount("none", "/", "tmpfs", 0, "") },
		"change root":     func() error { return unix.Chroot("/") },
		"device node":     func() error { return unix.Mknodat(unix.AT_FDCWD, "/null", unix.S_IFCHR, int(unix.Mkdev(1, 3))) },
		"become another":  func() error { return unix.Setfsuid(1) },
		"load a module":   func() error { return unix.InitModule(nil, "") },
		"read the memory": func() error { _, err := os.Open("/proc/self/mem"); return err },
	} {
		result[name] = ""
		if err := try(); err != nil {
			result[name] = err.Error()
		}
	}
	_ = json.NewEncoder(os.Stdout).Encode(result) // the test misses it
}

func number(errno syscall.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}
