package task

import (
	"context"
	"fmt"
	"sync"
	"syscall"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"google.golang.org/protobuf/types/known/emptypb"
)

// Kill signals a process. It fails with errdefs.ErrNotFound when the process has stopped.
func (s *Service) Kill(ctx context.Context, r *taskapi.KillRequest) (*emptypb.Empty, error) {
	p, err := s.process(r.GetID(), r.GetExecID())
	if err != nil {
		return nil, err
	}
	if err := s.kill(ctx, p, syscall.Signal(r.GetSignal())); err != nil {
		return nil, fmt.Errorf("send signal %d to %s: %w", r.GetSignal(), p, err)
	}
	return &emptypb.Empty{}, nil
}

func (s *Service) kill(ctx context.Context, p *process, signal syscall.Signal) error {
	state, _ := p.current()
	switch {
	case state == stateStopped:
		return fmt.Errorf("it has exited: %w", errdefs.ErrNotFound)
	case p.container.kind == kindPause, p.execID == "" && p.container.waiting() != nil:
		return s.killPod(signal)
	case state == stateCreated:
		return s.killCreated(ctx, p, signal)
	}
	if signal == syscall.SIGKILL {
		p.killOnce.Do(func() { close(p.killed) })
	}
	inGuest, err := p.inGuest()
	if err != nil {
		return err
	}
	return inGuest.Signal(ctx, uint32(signal))
}

// killCreated ends a process that was never started. The guest is asked to end what waits there, but nothing attends
// it yet, so its end is reported here. An exec that was not started is unknown to the guest.
func (s *Service) killCreated(ctx context.Context, p *process, signal syscall.Signal) error {
	if !fatal(signal) {
		return nil
	}
	if p.execID == "" {
		inGuest, err := p.inGuest()
		if err != nil {
			return err
		}
		if err := inGuest.Signal(ctx, uint32(syscall.SIGKILL)); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	s.finish(p, exit{status: 128 + uint32(signal), at: time.Now()})
	return nil
}

// killPod ends the pod that a pause task stands for, as the pause program would end by the same signals, and that of a
// container which waits for its VM. The pod's end reports the task's.
func (s *Service) killPod(signal syscall.Signal) error {
	if !fatal(signal) {
		return nil
	}
	go func() {
		ctx, cancel := context.WithTimeout(s.life, podStopBudget)
		defer cancel()
		if err := s.pod.Stop(ctx); err != nil {
			log.G(ctx).WithError(err).Error("pod not stopped")
		}
	}()
	return nil
}

// podStopBudget bounds a stop of the pod whose request was answered before.
const podStopBudget = 2 * time.Minute

// fatal tells the signals that end a process which does nothing about them.
func fatal(signal syscall.Signal) bool {
	switch signal {
	case syscall.SIGKILL, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGHUP:
		return true
	}
	return false
}

// End implements sandbox.Members: it kills all containers and waits until their ends are reported.
func (s *Service) End(ctx context.Context) {
	var all sync.WaitGroup
	for _, c := range s.all() {
		if c.kind == kindPause || c.waiting() != nil {
			continue
		}
		all.Go(func() {
			if err := s.kill(ctx, c.init, syscall.SIGKILL); err != nil && !errdefs.IsNotFound(err) {
				log.G(ctx).WithError(err).WithField("container", c.id).Warn("container not killed, its vm is ended next")
				return
			}
			select {
			case <-c.init.stopped:
			case <-ctx.Done():
			}
		})
	}
	all.Wait()
}
