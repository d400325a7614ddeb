package server

import (
	"context"

	"google.golang.org/protobuf/types/known/emptypb"

	agentpb "github.com/coffer-project/coffer/proto/agent"
	typespb "github.com/coffer-project/coffer/proto/types"
)

// UpdateInterface sets up one network card and returns it as it is then.
func (s *service) UpdateInterface(ctx context.Context, r *agentpb.UpdateInterfaceRequest) (*typespb.Interface, error) {
	return s.Network.UpdateInterface(ctx, r.GetInterface())
}

// UpdateRoutes replaces the routes and returns those there are then.
func (s *service) UpdateRoutes(ctx context.Context, r *agentpb.UpdateRoutesRequest) (*agentpb.Routes, error) {
	routes, err := s.Network.UpdateRoutes(ctx, r.GetRoutes().GetRoutes())
	if err != nil {
		return nil, err
	}
	return &agentpb.Routes{Routes: routes}, nil
}

// ListInterfaces returns the network cards.
func (s *service) ListInterfaces(ctx context.Context, _ *agentpb.ListInterfacesRequest) (*agentpb.Interfaces, error) {
	cards, err := s.Network.ListInterfaces(ctx)
	if err != nil {
		return nil, err
	}
	return &agentpb.Interfaces{Interfaces: cards}, nil
}

// ListRoutes returns the routes.
func (s *service) ListRoutes(ctx context.Context, _ *agentpb.ListRoutesRequest) (*agentpb.Routes, error) {
	routes, err := s.Network.ListRoutes(ctx)
	if err != nil {
		return nil, err
	}
	return &agentpb.Routes{Routes: routes}, nil
}

// AddARPNeighbors adds fixed neighbours.
func (s *service) AddARPNeighbors(ctx context.Context, r *agentpb.AddARPNeighborsRequest) (*emptypb.Empty, error) {
	return done(s.Network.AddNeighbors(ctx, r.GetNeighbors().GetARPNeighbors()))
}
