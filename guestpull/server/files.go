package server

import (
	"context"

	"google.golang.org/protobuf/types/known/emptypb"

	agentpb "github.com/coffer-project/coffer/proto/agent"
	guestpb "github.com/coffer-project/coffer/proto/guestpull/v1"
)

// CopyFile takes a part of a file of the pod.
func (s *service) CopyFile(ctx context.Context, r *agentpb.CopyFileRequest) (*emptypb.Empty, error) {
	return done(s.Files.CopyFile(ctx, r))
}

// RemoveFiles removes what came by CopyFile.
func (s *service) RemoveFiles(ctx context.Context, r *guestpb.RemoveFilesRequest) (*guestpb.RemoveFilesResponse, error) {
	if err := s.Files.RemoveFiles(ctx, r); err != nil {
		return nil, err
	}
	return &guestpb.RemoveFilesResponse{}, nil
}
