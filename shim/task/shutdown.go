package task

import (
	"context"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/coffer-project/coffer/shim/sandbox"
)

// Shutdown ends the shim when it serves nobody any more. containerd calls it after every deleted task, so with tasks
// left, or in a pod of the sandbox API, it does nothing. A shim whose pod was never made, or whose sandbox containerd has
// forgotten (it names the pod itself then), ends.
func (s *Service) Shutdown(ctx context.Context, r *taskapi.ShutdownRequest) (*emptypb.Empty, error) {
	s.mu.Lock()
	busy := len(s.containers)+len(s.creations) > 0
	owned := s.ownsPod
	s.mu.Unlock()
	if busy || !owned && s.pod.State() != sandbox.StateNew && r.GetID() != s.pod.ID() {
		return &emptypb.Empty{}, nil
	}
	if err := s.pod.Stop(ctx); err != nil {
		return nil, err
	}
	s.shutdown()
	return &emptypb.Empty{}, nil
}
