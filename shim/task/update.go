package task

import (
	"context"
	"encoding/json"
	"fmt"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/emptypb"

	agentpb "github.com/coffer-project/coffer/proto/agent"
	"github.com/coffer-project/coffer/shim/bundle"
	"github.com/coffer-project/coffer/shim/sandbox"
)

// Update changes a container's limits. The VM keeps its size, so that limits beyond it are refused with
// errdefs.ErrFailedPrecondition, and so do the limits of the container that stands for it.
func (s *Service) Update(ctx context.Context, r *taskapi.UpdateTaskRequest) (*emptypb.Empty, error) {
	c, err := s.container(r.GetID())
	if err != nil {
		return nil, err
	}
	if c.kind == kindPause {
		return &emptypb.Empty{}, nil
	}
	var limits specs.LinuxResources
	if err := json.Unmarshal(r.GetResources().GetValue(), &limits); err != nil {
		return nil, fmt.Errorf("update container %s: decode resources: %w: %w", c.id, err, errdefs.ErrInvalidArgument)
	}
	if err := s.pod.Holds(sandbox.DemandOf(nil, containerResources(&limits))); err != nil {
		return nil, fmt.Errorf("update container %s: %w", c.id, err)
	}
	resources, err := bundle.Resources(ctx, &limits)
	if err != nil {
		return nil, fmt.Errorf("update container %s: %w", c.id, err)
	}
	if done, err := s.updatePending(ctx, c, &limits); done || err != nil {
		return &emptypb.Empty{}, err
	}
	guest, err := c.inGuest()
	if err != nil {
		return nil, fmt.Errorf("update: %w", err)
	}
	if _, err := guest.UpdateContainer(ctx, &agentpb.UpdateContainerRequest{ContainerId: c.id, Resources: resources}); err != nil {
		return nil, fmt.Errorf("update container %s: %w", c.id, err)
	}
	s.recordUser(ctx, c)
	return &emptypb.Empty{}, nil
}

// updatePending changes the limits with which a container will be made whose VM boots at its start. It reports false for
// all others.
func (s *Service) updatePending(ctx context.Context, c *container, limits *specs.LinuxResources) (bool, error) {
	c.init.op.Lock() // keeps the start out, which ends the waiting
	defer c.init.op.Unlock()
	made := c.waiting()
	if made == nil {
		return false, nil
	}
	if state, _ := c.init.current(); state != stateCreated {
		return false, fmt.Errorf("update container %s: it is %s: %w", c.id, state, errdefs.ErrFailedPrecondition)
	}
	changed, err := made.bundle.WithLimits(limits)
	if err != nil {
		return false, fmt.Errorf("update container %s: %w", c.id, err)
	}
	next := &pending{request: made.request, bundle: changed}
	if err := s.checkPending(ctx, next); err != nil {
		return false, fmt.Errorf("update container %s: %w", c.id, err)
	}
	c.wait(next)
	return true, nil
}
