package agenttest

import (
	"context"

	"google.golang.org/protobuf/types/known/emptypb"

	agentpb "github.com/coffer-project/coffer/proto/agent"
)

// These calls leave no state behind in the fake; tests look at Calls.

func (s *service) CreateSandbox(context.Context, *agentpb.CreateSandboxRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, nil
}

func (s *service) DestroySandbox(context.Context, *agentpb.DestroySandboxRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, nil
}

func (s *service) SetPolicy(context.Context, *agentpb.SetPolicyRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, nil
}

func (s *service) SetGuestDateTime(context.Context, *agentpb.SetGuestDateTimeRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, nil
}

func (s *service) ReseedRandomDev(context.Context, *agentpb.ReseedRandomDevRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, nil
}

func (s *service) AddARPNeighbors(context.Context, *agentpb.AddARPNeighborsRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, nil
}

func (s *service) UpdateContainer(_ context.Context, req *agentpb.UpdateContainerRequest) (*emptypb.Empty, error) {
	return s.known(req.GetContainerId())
}

func (s *service) PauseContainer(_ context.Context, req *agentpb.PauseContainerRequest) (*emptypb.Empty, error) {
	return s.known(req.GetContainerId())
}

func (s *service) ResumeContainer(_ context.Context, req *agentpb.ResumeContainerRequest) (*emptypb.Empty, error) {
	return s.known(req.GetContainerId())
}

func (s *service) TtyWinResize(_ context.Context, req *agentpb.TtyWinResizeRequest) (*emptypb.Empty, error) {
	if _, err := s.find(req.GetContainerId(), req.GetExecId()); err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

func (s *service) known(containerID string) (*emptypb.Empty, error) {
	if _, err := s.find(containerID, ""); err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}
