package task

import (
	"context"
	"io"
	"strings"
	"sync"
	"time"

	eventsapi "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coffer-project/coffer/shim/agent"
)

const (
	// exitKilled is reported for processes that a requested end of the pod took down.
	exitKilled = 128 + 9
	// exitUnknown is what containerd itself reports when it cannot know an exit status.
	exitUnknown = 255
)

const (
	// killGrace is how long a killed process may keep its output open before its exit is asked for anyway.
	killGrace = 2 * time.Second
	// drainGrace is how long an exited process's output may take to reach a client that reads slowly.
	drainGrace = 2 * time.Second
	// execGrace is how long a container's exit waits for those of its execs, which the guest has killed with it.
	execGrace = 5 * time.Second
)

// Wait answers when a process has stopped.
func (s *Service) Wait(ctx context.Context, r *taskapi.WaitRequest) (*taskapi.WaitResponse, error) {
	p, err := s.process(r.GetID(), r.GetExecID())
	if err != nil {
		return nil, err
	}
	select {
	case <-p.stopped:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	_, e := p.current()
	return &taskapi.WaitResponse{ExitStatus: e.status, ExitedAt: timestamppb.New(e.at)}, nil
}

// attend carries the stdio of a started process and reports its end.
//
// The exit status is asked for only when the output has ended, because an agent may forget a process, with what is left in
// its pipes, as soon as its status was told. Two things cut that short: a client that has stopped reading, and a kill.
func (s *Service) attend(p *process, inGuest *agent.Process) {
	ended := s.copyStdio(p, inGuest)
	killed := afterClosed(p.killed, killGrace, p.stopped)
	select {
	case <-ended:
	case <-p.stdio.stdout.stalled:
	case <-p.stdio.stderr.stalled:
	case <-killed:
	case <-p.stopped: // the pod is gone
		return
	}
	e, ok := s.awaitExit(p, inGuest)
	if !ok {
		return
	}
	select {
	case <-ended:
	case <-time.After(drainGrace):
	case <-p.stopped:
	}
	if p.execID == "" {
		s.takeTermination(p.container)
	}
	s.finish(p, e)
}

// awaitExit asks the guest for the exit status. It reports false when the end of the pod reports the process's end.
func (s *Service) awaitExit(p *process, inGuest *agent.Process) (exit, bool) {
	status, err := inGuest.Wait(s.life)
	if err == nil {
		return exit{status: status, at: time.Now()}, true
	}
	if errdefs.IsUnavailable(err) || s.life.Err() != nil {
		// The pod notices the lost connection too and ends; the limit is for a guest that only claims to be unavailable.
		select {
		case <-p.stopped:
			return exit{}, false
		case <-time.After(undoBudget):
		}
	}
	log.G(s.life).WithError(err).WithField("container", p.container.id).WithField("exec", p.execID).
		Error("guest cannot tell how a process ended")
	return exit{status: exitUnknown, at: time.Now()}, true
}

// copyStdio starts the copies between the guest and the client. The returned channel is closed when the output has
// ended; the copy of the input ends with the process.
func (s *Service) copyStdio(p *process, inGuest *agent.Process) <-chan struct{} {
	logged := func(copying string, err error) {
		select {
		case <-p.stopped: // its streams were closed under the copy
		default:
			if err != nil {
				log.G(s.life).WithError(err).WithField("container", p.container.id).WithField("exec", p.execID).
					Warn(copying + " ended early")
			}
		}
	}
	switch {
	case p.stdio.stdin != nil:
		go func() { logged("stdin", inGuest.CopyStdin(s.life, p.stdio.stdin)) }()
	case !p.stdio.paths.terminal:
		// The guest's end of the pipe is open until it is told: a program that reads would wait for ever.
		go func() { logged("stdin", inGuest.CopyStdin(s.life, strings.NewReader(""))) }()
	}
	copyOut := func(name string, copying func(context.Context, io.Writer) error, to *output) {
		logged(name, copying(s.life, to))
		if to.failed.Load() {
			// A full disk, or a logger program that has ended, must not make the program wait for ever.
			logged(name, copying(s.life, io.Discard))
		}
	}
	var outputs sync.WaitGroup
	outputs.Go(func() { copyOut("stdout", inGuest.CopyStdout, p.stdio.stdout) })
	if !p.stdio.paths.terminal {
		outputs.Go(func() { copyOut("stderr", inGuest.CopyStderr, p.stdio.stderr) })
	}
	ended := make(chan struct{})
	go func() {
		outputs.Wait()
		close(ended)
	}()
	return ended
}

// finish reports the end of a process, once: its FIFOs are closed, waiters released, the event posted. The first process
// of a container is the last to be reported.
func (s *Service) finish(p *process, e exit) {
	if p.execID == "" {
		deadline := time.After(execGrace)
		for _, exec := range p.container.runningExecs() {
			select {
			case <-exec.stopped:
			case <-deadline:
				s.report(exec, exit{status: exitKilled, at: e.at})
			}
		}
	}
	s.report(p, e)
}

func (s *Service) report(p *process, e exit) {
	p.stdio.close()
	pid := s.pid()
	p.stop(e, func() {
		s.outbox.post(&eventsapi.TaskExit{
			ContainerID: p.container.id, ID: p.id(), Pid: pid, ExitStatus: e.status, ExitedAt: timestamppb.New(e.at),
		})
		log.G(s.life).WithField("container", p.container.id).WithField("exec", p.execID).WithField("status", e.status).
			Info("process exited")
	})
}

// watchPod reports the end of a container's processes when the pod is gone, first process last. It returns when the
// task is deleted.
func (s *Service) watchPod(c *container) {
	gone := s.pod.Gone()
	if c.kind == kindPause {
		gone = s.pod.Ended()
	}
	select {
	case <-gone:
	case <-c.removed:
		return
	}
	s.live.Forget(c.id)
	cause := s.pod.Exit()
	e := exit{status: exitKilled, at: cause.At}
	if cause.Err != nil {
		e.status = exitUnknown
	}
	for _, exec := range c.allExecs() {
		s.report(exec, e)
	}
	s.report(c.init, e)
}

// afterClosed is closed some time after first was, unless abandon is closed before.
func afterClosed(first <-chan struct{}, wait time.Duration, abandon <-chan struct{}) <-chan struct{} {
	later := make(chan struct{})
	go func() {
		select {
		case <-first:
		case <-abandon:
			return
		}
		select {
		case <-time.After(wait):
			close(later)
		case <-abandon:
		}
	}()
	return later
}
