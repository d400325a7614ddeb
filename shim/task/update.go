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
