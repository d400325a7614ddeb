package holder

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/guestpull/container"
)

// startLimit bounds the start of a holder, which takes milliseconds; long, because the host decides when the guest runs.
const startLimit = time.Minute

// Children starts child processes and tells how they end.
type Children interface {
	Start(cmd *exec.Cmd) (pid int, exit <-chan int, err error)
}

// Start starts a holder by its command. It returns once the holder has given up the guest's files and its rights, and obeys
// no signal: before that, no container may share its pid namespace. A holder that ends early, or does not get that far, is an
// error (errdefs.ErrUnavailable), and then nothing is left of it.
func Start(children Children, cmd *exec.Cmd) (container.Process, error) {
	ready, theirs, err := os.Pipe()
	if err != nil {
		return container.Process{}, fmt.Errorf("start holder: %w", err)
	}
	defer ready.Close()
	cmd.ExtraFiles = append(cmd.ExtraFiles, theirs) // it gets number readyFD
	pid, exit, err := children.Start(cmd)
	_ = theirs.Close()
	if err != nil {
		return container.Process{}, fmt.Errorf("start holder: %w", err)
	}
	if err := ready.SetReadDeadline(time.Now().Add(startLimit)); err != nil {
		return container.Process{}, endEarly(pid, exit, err)
	}
	// The byte, and then the end: the holder has closed the pipe, too.
	if said, err := io.ReadAll(io.LimitReader(ready, 2)); err != nil || len(said) != 1 {
		return container.Process{}, endEarly(pid, exit, err)
	}
	return container.Process{PID: pid, Exit: exit}, nil
}

// endEarly ends a holder that is not ready, and waits for its end. cause is nil when the holder has closed the pipe.
func endEarly(pid int, exit <-chan int, cause error) error {
	if cause == nil {
		cause = io.ErrUnexpectedEOF
	}
	// The number is its own until its exit was told, and nobody else is told.
	select {
	case status := <-exit:
		return fmt.Errorf("holder of namespaces has ended with status %d before it was ready: %w: %w", status, cause, errdefs.ErrUnavailable)
	default:
	}
	_ = unix.Kill(pid, unix.SIGKILL)
	status := <-exit
	return fmt.Errorf("holder of namespaces is not ready, and was ended with status %d: %w: %w", status, cause, errdefs.ErrUnavailable)
}

// sayReady tells Start that the holder is what it should be.
func sayReady() error {
	if _, err := unix.Write(readyFD, []byte{1}); err != nil {
		return fmt.Errorf("tell the agent: %w", err)
	}
	return unix.Close(readyFD)
}
