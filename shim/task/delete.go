package task

import (
	"context"
	"fmt"
	"time"

	eventsapi "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Delete forgets a process that does not run, and with a container's first process the container, in the guest too. It
// fails with errdefs.ErrFailedPrecondition for a running process and with errdefs.ErrNotFound for a deleted one.
// A creation under way is given up.
func (s *Service) Delete(ctx context.Context, r *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	if r.GetExecID() == "" {
		if err := s.abandon(ctx, r.GetID()); err != nil {
			return nil, err
		}
	}
	p, err := s.process(r.GetID(), r.GetExecID())
	if err != nil {
		return nil, err
	}
	p.op.Lock()
	defer p.op.Unlock()
	state, e := p.current()
	if state == stateRunning || state == statePaused {
		return nil, fmt.Errorf("delete %s: it is %s, kill it first: %w", p, state, errdefs.ErrFailedPrecondition)
	}
	response := &taskapi.DeleteResponse{Pid: s.pid(), ExitStatus: e.status, ExitedAt: stamp(e.at)}
	if p.execID != "" {
		p.container.removeExec(p)
		p.stdio.close()
		p.stdio.wait()
		p.stop(e, nil)
		return response, nil
	}
	if err := s.deleteContainer(ctx, p.container); err != nil {
		return nil, fmt.Errorf("delete %s: %w", p, err)
	}
	p.stop(e, nil)
	s.outbox.post(&eventsapi.TaskDelete{
		ContainerID: p.container.id, Pid: s.pid(), ExitStatus: e.status, ExitedAt: response.ExitedAt,
	})
	return response, nil
}

// deleteContainer releases what a container holds. It may be called again when it has failed.
func (s *Service) deleteContainer(ctx context.Context, c *container) error {
	switch c.kind {
	case kindMember:
		guest, err := c.inGuest()
		if err != nil {
			return err
		}
		if err := s.removeFromGuest(ctx, guest, c.id); err != nil {
			return err
		}
		if err := s.dropFiles(ctx, guest, c); err != nil {
			return err
		}
		c.dropVolumes(ctx)
	default:
		// The pod goes with its task.
		if err := s.pod.Stop(ctx); err != nil {
			return err
		}
		s.runPoststopHooks(ctx, c)
	}
	c.init.stdio.close()
	for _, exec := range c.allExecs() {
		exec.stdio.close()
		exec.stop(exit{status: exitKilled, at: time.Now()}, nil)
		exec.stdio.wait()
	}
	c.init.stdio.wait()
	if s.remove(c) {
		close(c.removed)
	}
	return nil
}

// stamp leaves the time of a process that never ran empty.
func stamp(at time.Time) *timestamppb.Timestamp {
	if at.IsZero() {
		return nil
	}
	return timestamppb.New(at)
}
