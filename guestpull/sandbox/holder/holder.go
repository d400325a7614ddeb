// Package holder is a process that does nothing: it keeps a pid namespace alive and reaps the orphans in it, or stands in for the
// sandbox container of a shim that insists on having one.
//
// It is the agent's own program, started again with another first argument, so that the guest needs no other binary.
package holder

import (
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/guestpull/container/spec"
)

// Arg is the first argument by which main knows that it is to call Main.
const Arg = "hold"

// Command returns the command of a holder, in a pid namespace of its own or not. program is the agent's path.
func Command(program string, newPID bool) *exec.Cmd {
	cmd := exec.Command(program, Arg)
	cmd.Dir = "/"
	cmd.Env = []string{"GOMAXPROCS=1"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if newPID {
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWPID
	}
	return cmd
}

// UserCommand returns the command of a holder in user, UTS, IPC and pid namespaces of its own. The process itself keeps
// the guest's user, which the user namespace does not know, so nobody in there can touch it.
func UserCommand(program string, users spec.Users) *exec.Cmd {
	cmd := Command(program, true)
	cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC
	cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: int(users.UID.HostID), Size: int(users.UID.Size)}}
	cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: int(users.GID.HostID), Size: int(users.GID.Size)}}
	cmd.SysProcAttr.GidMappingsEnableSetgroups = true
	return cmd
}

// Main waits for the end and returns the exit code. As the first process of a pid namespace it ends only by SIGKILL from outside: a
// container that shares the namespace must not be able to end the pod.
func Main() int {
	first := os.Getpid() == 1
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGCHLD, unix.SIGTERM, unix.SIGINT)
	for s := range signals {
		if s == unix.SIGCHLD {
			reap()
		} else if !first {
			return 128 + int(s.(syscall.Signal))
		}
	}
	return 0
}

func reap() {
	for {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		if pid <= 0 && err != unix.EINTR {
			return
		}
	}
}
