package task

import (
	"context"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	tasktypes "github.com/containerd/containerd/api/types/task"
)

// Pids lists one process for a container that lives: the VM's monitor. The guest's process ids mean nothing on the
// host, and containerd takes a task without any for a leftover.
func (s *Service) Pids(_ context.Context, r *taskapi.PidsRequest) (*taskapi.PidsResponse, error) {
	c, err := s.container(r.GetID())
	if err != nil {
		return nil, err
	}
	response := &taskapi.PidsResponse{}
	if state, _ := c.init.current(); state != stateStopped {
		response.Processes = append(response.Processes, &tasktypes.ProcessInfo{Pid: s.pid()})
	}
	return response, nil
}
