package server

import (
	"context"

	"google.golang.org/protobuf/types/known/emptypb"

	agentpb "github.com/coffer-project/coffer/proto/agent"
)

// ExecProcess starts a further process in a container.
func (s *service) ExecProcess(ctx context.Context, r *agentpb.ExecProcessRequest) (*emptypb.Empty, error) {
	return done(s.Containers.Exec(ctx, r))
}

// SignalProcess signals one process, or with an empty exec id and SIGKILL all processes of the container.
func (s *service) SignalProcess(ctx context.Context, r *agentpb.SignalProcessRequest) (*emptypb.Empty, error) {
	return done(s.Containers.Signal(ctx, r.GetContainerId(), r.GetExecId(), r.GetSignal()))
}

// WaitProcess blocks until the process has exited.
func (s *service) WaitProcess(ctx context.Context, r *agentpb.WaitProcessRequest) (*agentpb.WaitProcessResponse, error) {
	status, err := s.Containers.Wait(ctx, r.GetContainerId(), r.GetExecId())
	if err != nil {
		return nil, err
	}
	return &agentpb.WaitProcessResponse{Status: status}, nil
}

// TtyWinResize sets the size of a process's terminal.
func (s *service) TtyWinResize(_ context.Context, r *agentpb.TtyWinResizeRequest) (*emptypb.Empty, error) {
	return done(s.Containers.Resize(r.GetContainerId(), r.GetExecId(), r.GetRow(), r.GetColumn()))
}

// ReadStdout returns the next chunk of output; an empty one is the end.
func (s *service) ReadStdout(ctx context.Context, r *agentpb.ReadStreamRequest) (*agentpb.ReadStreamResponse, error) {
	return s.read(ctx, r, false)
}

// ReadStderr returns the next chunk of error output; an empty one is the end.
func (s *service) ReadStderr(ctx context.Context, r *agentpb.ReadStreamRequest) (*agentpb.ReadStreamResponse, error) {
	return s.read(ctx, r, true)
}

func (s *service) read(ctx context.Context, r *agentpb.ReadStreamRequest, stderr bool) (*agentpb.ReadStreamResponse, error) {
	data, err := s.Containers.Read(ctx, r.GetContainerId(), r.GetExecId(), stderr, r.GetLen())
	if err != nil {
		return nil, err
	}
	return &agentpb.ReadStreamResponse{Data: data}, nil
}

// WriteStdin hands input to a process; no data at all is the end of the input.
func (s *service) WriteStdin(ctx context.Context, r *agentpb.WriteStreamRequest) (*agentpb.WriteStreamResponse, error) {
	n, err := s.Containers.Write(ctx, r.GetContainerId(), r.GetExecId(), r.GetData())
	if err != nil {
		return nil, err
	}
	return &agentpb.WriteStreamResponse{Len: n}, nil
}

// CloseStdin ends a process's input.
func (s *service) CloseStdin(_ context.Context, r *agentpb.CloseStdinRequest) (*emptypb.Empty, error) {
	return done(s.Containers.CloseStdin(r.GetContainerId(), r.GetExecId()))
}
