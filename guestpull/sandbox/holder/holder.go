// Package holder is a process that does nothing: it keeps a pid namespace alive and reaps the orphans in it, or stands in for the
// sandbox container of a shim that insists on having one.
//
// It is the agent's own program, started again with another first argument, so that the guest needs no other binary. The
// containers that share its pid namespace see it, and those with CAP_SYS_PTRACE may take it over: so it gives up the
// guest's files and every capability before it waits.
package holder

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/guestpull/container/spec"
)

// Arg is the first argument by which main knows that it is to call Main.
const Arg = "hold"

const (
	// userVariable names the user and group that the holder becomes, as its user namespace counts them.
	userVariable = "COFFER_HOLDER_USER"
	// nobody is the user that owns nothing.
	nobody = 65534
	// rootFD is the file descriptor of the folder that becomes its root.
	rootFD = 3
	// readyFD is that of the pipe by which it tells Start that it is ready.
	readyFD = 4
)

// Command returns the command of a holder, for Start, in a pid namespace of its own or not. program is the agent's path.
func Command(program string, newPID bool) (*exec.Cmd, error) {
	root, err := nowhere()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(program, Arg)
	cmd.Dir = "/"
	// The Go runtime would keep files of the guest's own cgroup open, to follow its limits.
	cmd.Env = []string{"GOMAXPROCS=1", "GODEBUG=containermaxprocs=0,updatemaxprocs=0", fmt.Sprint(userVariable, "=", nobody)}
	cmd.Stderr = os.Stderr            // until it is confined
	cmd.ExtraFiles = []*os.File{root} // it gets number rootFD
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if newPID {
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWPID
	}
	return cmd, nil
}

// UserCommand returns the command of a holder, for Start, in user, UTS, IPC and pid namespaces of its own.
func UserCommand(program string, users spec.Users) (*exec.Cmd, error) {
	cmd, err := Command(program, true)
	if err != nil {
		return nil, err
	}
	cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC
	cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: int(users.UID.HostID), Size: int(users.UID.Size)}}
	cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: int(users.GID.HostID), Size: int(users.GID.Size)}}
	cmd.SysProcAttr.GidMappingsEnableSetgroups = true
	// What confine needs: the program starts as a user that the namespace does not know, which has no capabilities by itself.
	cmd.SysProcAttr.AmbientCaps = []uintptr{unix.CAP_SYS_CHROOT, unix.CAP_SETUID, unix.CAP_SETGID}
	last := min(users.UID.Size, users.GID.Size, nobody+1) - 1
	cmd.Env = append(cmd.Env, fmt.Sprint(userVariable, "=", last))
	return cmd, nil
}

// Main waits for the end and returns the exit code. As the first process of a pid namespace it ends only by SIGKILL from outside: a
// container that shares the namespace must not be able to end the pod.
func Main() int {
	// Before anything else, and all of them: the Go runtime ends a program at some signals that it is sent, and at SIGQUIT too.
	children, others := make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(others)
	signal.Notify(children, unix.SIGCHLD)
	err := confine()
	if err == nil {
		err = sayReady()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "holder of namespaces cannot give up its rights:", err)
		return 1
	}
	first := os.Getpid() == 1
	for {
		select {
		case <-children: // of its own, so that no flood of other signals hides it
			reap()
		case s := <-others:
			if !first && (s == unix.SIGTERM || s == unix.SIGINT) {
				return 128 + int(s.(syscall.Signal))
			}
		}
	}
}

// confine gives up all that a process that takes this one over could make use of.
func confine() error {
	user, err := strconv.ParseUint(os.Getenv(userVariable), 10, 31)
	if err != nil {
		return fmt.Errorf("variable %s: %w", userVariable, err)
	}
	if err := errors.Join(unix.Fchdir(rootFD), unix.Chroot("."), unix.Close(rootFD)); err != nil {
		return fmt.Errorf("leave the guest's files: %w", err)
	}
	if err := syscall.Setgroups(nil); err != nil {
		return fmt.Errorf("leave the guest's groups: %w", err)
	}
	// From 0 to another user is when the kernel takes the capabilities away, on every thread; in a user namespace it is not 0 yet.
	for _, id := range []int{0, int(user)} {
		if err := syscall.Setresgid(id, id, id); err != nil {
			return fmt.Errorf("become group %d: %w", id, err)
		}
		if err := syscall.Setresuid(id, id, id); err != nil {
			return fmt.Errorf("become user %d: %w", id, err)
		}
	}
	if err := unix.Dup3(0, 2, 0); err != nil {
		return fmt.Errorf("leave the guest's log: %w", err)
	}
	// A container may well have processes of the same user.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("keep others from the process: %w", err)
	}
	return nil
}

func reap() {
	for {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		if pid <= 0 && err != unix.EINTR {
			return
		}
	}
}
