package task

import (
	"context"
	"os"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
)

// Connect tells the shim's process id. containerd asks after its restart whether a shim is alive, also for ids that are
// no tasks, so every id is fine.
func (s *Service) Connect(context.Context, *taskapi.ConnectRequest) (*taskapi.ConnectResponse, error) {
	return &taskapi.ConnectResponse{ShimPid: uint32(os.Getpid()), TaskPid: s.pid()}, nil
}
