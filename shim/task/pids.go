package task

import (
	"context"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	tasktypes "github.com/containerd/containerd/api/types/task"
)

// Pids lists one process for a container until it is deleted: the VM's monitor. The guest's process ids mean nothing on
// the host, and containerd takes a task without any for a leftover when it starts: it would delete a container that has
// ended while containerd was down, and its exit status with it.
func (s *Service) Pids(_ context.Context, r *taskapi.PidsRequest) (*taskapi.PidsResponse, error) {
	if _, err := s.container(r.GetID()); err != nil {
		return nil, err
	}
	return &taskapi.PidsResponse{Processes: []*tasktypes.ProcessInfo{{Pid: s.pid()}}}, nil
}
