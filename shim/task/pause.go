package task

import (
	"context"
	"fmt"

	eventsapi "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/emptypb"

	agentpb "github.com/coffer-project/coffer/proto/agent"
	"github.com/coffer-project/coffer/shim/agent"
)

// Pause freezes a running container's processes.
func (s *Service) Pause(ctx context.Context, r *taskapi.PauseRequest) (*emptypb.Empty, error) {
	return s.freeze(r.GetID(), stateRunning, statePaused, &eventsapi.TaskPaused{ContainerID: r.GetID()},
		func(c *container, guest *agent.Client) error {
			_, err := guest.PauseContainer(ctx, &agentpb.PauseContainerRequest{ContainerId: c.id})
			return err
		})
}

// Resume lets a paused container's processes go on.
func (s *Service) Resume(ctx context.Context, r *taskapi.ResumeRequest) (*emptypb.Empty, error) {
	return s.freeze(r.GetID(), statePaused, stateRunning, &eventsapi.TaskResumed{ContainerID: r.GetID()},
		func(c *container, guest *agent.Client) error {
			_, err := guest.ResumeContainer(ctx, &agentpb.ResumeContainerRequest{ContainerId: c.id})
			return err
		})
}

func (s *Service) freeze(id string, from, to processState, event any, call func(*container, *agent.Client) error) (*emptypb.Empty, error) {
	c, err := s.container(id)
	if err != nil {
		return nil, err
	}
	if c.kind == kindPause {
		return nil, fmt.Errorf("pause or resume a pod's virtual machine: %w", errdefs.ErrNotImplemented)
	}
	c.init.op.Lock()
	defer c.init.op.Unlock()
	if state, _ := c.init.current(); state != from {
		return nil, fmt.Errorf("container %s is %s, not %s: %w", id, state, from, errdefs.ErrFailedPrecondition)
	}
	guest, err := c.inGuest()
	if err != nil {
		return nil, err
	}
	if err := call(c, guest); err != nil {
		return nil, fmt.Errorf("container %s: %w", id, err)
	}
	if err := c.init.move(from, to); err != nil {
		return nil, err // it exited in this very moment
	}
	s.outbox.post(event)
	return &emptypb.Empty{}, nil
}
