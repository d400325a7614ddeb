package task

import (
	"context"
	"fmt"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/emptypb"
)

// CloseIO lets a process's input end when the client's own writers are closed. Until then a client may detach and come
// back.
func (s *Service) CloseIO(_ context.Context, r *taskapi.CloseIORequest) (*emptypb.Empty, error) {
	p, err := s.process(r.GetID(), r.GetExecID())
	if err != nil {
		return nil, err
	}
	if r.GetStdin() {
		p.stdio.closeStdin()
	}
	return &emptypb.Empty{}, nil
}

// Checkpoint is not offered: the memory of a guest is not the host's to write down.
func (s *Service) Checkpoint(context.Context, *taskapi.CheckpointTaskRequest) (*emptypb.Empty, error) {
	return nil, fmt.Errorf("checkpoint of a container in a virtual machine: %w", errdefs.ErrNotImplemented)
}
