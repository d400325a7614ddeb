package container

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/guestpull/container/stdio"
)

// process is one running or finished process of a container.
type process struct {
	id      string
	pid     int
	streams *stdio.Set
	done    chan struct{} // closed at exit, after status is set
	status  int32
	waited  atomic.Bool // the host knows the status

	mu    sync.Mutex
	pidfd int // -1 once the process is gone
}

// newProcess follows a process that was just started, until its exit.
func newProcess(id string, started Process, set *stdio.Set) *process {
	p := &process{id: id, pid: started.PID, streams: set, done: make(chan struct{}), pidfd: -1}
	// The handle outlives the number: a signal never reaches another process that got the same number.
	if fd, err := unix.PidfdOpen(started.PID, 0); err == nil {
		p.pidfd = fd
	}
	go func() {
		p.status = int32(<-started.Exit)
		p.mu.Lock()
		if p.pidfd >= 0 {
			_ = unix.Close(p.pidfd)
			p.pidfd = -1
		}
		p.mu.Unlock()
		p.streams.Exited()
		close(p.done)
	}()
	return p
}

// wait returns the exit status: the code, or 128 plus the number of the fatal signal.
func (p *process) wait(ctx context.Context) (int32, error) {
	select {
	case <-p.done:
		return p.status, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// signal sends a signal to this process alone. NotFound: it has exited.
func (p *process) signal(sig unix.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pidfd < 0 {
		return fmt.Errorf("process %s has exited: %w", p.id, errdefs.ErrNotFound)
	}
	err := unix.PidfdSendSignal(p.pidfd, sig, nil, 0)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ESRCH):
		return fmt.Errorf("process %s has exited: %w", p.id, errdefs.ErrNotFound)
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("signal %d: %w", sig, errdefs.ErrInvalidArgument)
	}
	return fmt.Errorf("signal process %s: %w", p.id, err)
}

func (p *process) exited() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// settled reports whether the host has everything of this process: its status and all its output.
func (p *process) settled() bool { return p.exited() && p.waited.Load() && p.streams.Drained() }

// end kills the process, waits for its exit and closes its streams.
func (p *process) end(ctx context.Context) error {
	if err := p.signal(unix.SIGKILL); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	if _, err := p.wait(ctx); err != nil {
		return fmt.Errorf("wait for the end of process %s: %w", p.id, err)
	}
	p.streams.Close()
	return nil
}
