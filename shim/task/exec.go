package task

import (
	"context"
	"fmt"

	eventsapi "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/emptypb"

	agentpb "github.com/coffer-project/coffer/proto/agent"
	"github.com/coffer-project/coffer/shim/bundle"
)

// Exec prepares a further process in a container; Start runs it. It fails with errdefs.ErrAlreadyExists when the id is
// taken, and with errdefs.ErrFailedPrecondition when the container does not run.
func (s *Service) Exec(ctx context.Context, r *taskapi.ExecProcessRequest) (*emptypb.Empty, error) {
	c, err := s.container(r.GetID())
	if err != nil {
		return nil, err
	}
	if r.GetExecID() == "" {
		return nil, fmt.Errorf("exec in container %s: no exec id: %w", c.id, errdefs.ErrInvalidArgument)
	}
	if c.kind == kindPause {
		return nil, fmt.Errorf("exec in %s: it stands for the pod's virtual machine and runs no programs: %w",
			c.id, errdefs.ErrFailedPrecondition)
	}
	if state, _ := c.init.current(); state == stateStopped || state == statePaused {
		return nil, fmt.Errorf("exec in container %s: it is %s: %w", c.id, state, errdefs.ErrFailedPrecondition)
	}
	request, err := execRequest(ctx, r, c.users)
	if err != nil {
		return nil, fmt.Errorf("exec in container %s: %w", c.id, err)
	}
	p := newProcess(c, r.GetExecID(), nil)
	p.exec = request
	p.stdio, err = openStdio(ctx, paths{
		stdin: r.GetStdin(), stdout: r.GetStdout(), stderr: r.GetStderr(), terminal: r.GetTerminal(),
	}, p.execID)
	if err != nil {
		return nil, fmt.Errorf("exec in container %s: %w", c.id, err)
	}
	if err := c.addExec(p); err != nil {
		p.stdio.close()
		p.stdio.wait()
		return nil, err
	}
	s.outbox.post(&eventsapi.TaskExecAdded{ContainerID: c.id, ExecID: p.execID})
	return &emptypb.Empty{}, nil
}

func execRequest(ctx context.Context, r *taskapi.ExecProcessRequest, users bundle.Users) (*agentpb.ExecProcessRequest, error) {
	spec, err := bundle.ParseProcess(r.GetSpec().GetValue())
	if err != nil {
		return nil, err
	}
	spec.Terminal = r.GetTerminal()
	process, err := bundle.Process(ctx, spec, users)
	if err != nil {
		return nil, err
	}
	return &agentpb.ExecProcessRequest{ContainerId: r.GetID(), ExecId: r.GetExecID(), Process: process}, nil
}
