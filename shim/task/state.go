package task

import (
	"context"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
)

// State tells where a process stands.
func (s *Service) State(_ context.Context, r *taskapi.StateRequest) (*taskapi.StateResponse, error) {
	p, err := s.process(r.GetID(), r.GetExecID())
	if err != nil {
		return nil, err
	}
	state, e := p.current()
	return &taskapi.StateResponse{
		ID: p.id(), Bundle: p.container.bundle, Pid: s.pid(), Status: state.status(), ExecID: p.execID,
		Stdin: p.stdio.paths.stdin, Stdout: p.stdio.paths.stdout, Stderr: p.stdio.paths.stderr,
		Terminal: p.stdio.paths.terminal, ExitStatus: e.status, ExitedAt: stamp(e.at),
	}, nil
}
