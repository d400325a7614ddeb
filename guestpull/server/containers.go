package server

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/emptypb"

	agentpb "github.com/coffer-project/coffer/proto/agent"
)

// done is the answer of calls that have nothing to tell.
func done(err error) (*emptypb.Empty, error) {
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

// CreateContainer pulls the image and makes the container. It blocks for the pull.
func (s *service) CreateContainer(ctx context.Context, r *agentpb.CreateContainerRequest) (*emptypb.Empty, error) {
	return done(s.Containers.Create(ctx, r))
}

// StartContainer runs the container's program.
func (s *service) StartContainer(ctx context.Context, r *agentpb.StartContainerRequest) (*emptypb.Empty, error) {
	return done(s.Containers.Start(ctx, r.GetContainerId()))
}

// RemoveContainer kills what runs in the container and removes all of it.
func (s *service) RemoveContainer(ctx context.Context, r *agentpb.RemoveContainerRequest) (*emptypb.Empty, error) {
	return done(s.Containers.Remove(ctx, r.GetContainerId(), time.Duration(r.GetTimeout())*time.Second))
}

// UpdateContainer changes limits.
func (s *service) UpdateContainer(ctx context.Context, r *agentpb.UpdateContainerRequest) (*emptypb.Empty, error) {
	return done(s.Containers.Update(ctx, r))
}

// PauseContainer freezes the container.
func (s *service) PauseContainer(ctx context.Context, r *agentpb.PauseContainerRequest) (*emptypb.Empty, error) {
	return done(s.Containers.Pause(ctx, r.GetContainerId()))
}

// ResumeContainer lets the container go on.
func (s *service) ResumeContainer(ctx context.Context, r *agentpb.ResumeContainerRequest) (*emptypb.Empty, error) {
	return done(s.Containers.Resume(ctx, r.GetContainerId()))
}

// StatsContainer returns the container's figures.
func (s *service) StatsContainer(ctx context.Context, r *agentpb.StatsContainerRequest) (*agentpb.StatsContainerResponse, error) {
	stats, err := s.Containers.Stats(ctx, r.GetContainerId())
	if err != nil {
		return nil, err
	}
	return &agentpb.StatsContainerResponse{CgroupStats: stats}, nil
}
