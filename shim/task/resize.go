package task

import (
	"context"
	"fmt"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/emptypb"

	ocipb "github.com/coffer-project/coffer/proto/oci"
)

// ResizePty sets the size of a process's terminal. An exec that was not started yet begins with that size.
func (s *Service) ResizePty(ctx context.Context, r *taskapi.ResizePtyRequest) (*emptypb.Empty, error) {
	p, err := s.process(r.GetID(), r.GetExecID())
	if err != nil {
		return nil, err
	}
	if !p.stdio.paths.terminal {
		return nil, fmt.Errorf("resize %s: it has no terminal: %w", p, errdefs.ErrFailedPrecondition)
	}
	p.op.Lock()
	defer p.op.Unlock()
	state, _ := p.current()
	switch {
	case state == stateStopped:
		return nil, fmt.Errorf("resize %s: it has exited: %w", p, errdefs.ErrNotFound)
	case state == stateCreated && p.exec != nil:
		p.exec.Process.ConsoleSize = &ocipb.Box{Height: r.GetHeight(), Width: r.GetWidth()}
		return &emptypb.Empty{}, nil
	}
	inGuest, err := p.inGuest()
	if err != nil {
		return nil, err
	}
	if err := inGuest.Resize(ctx, r.GetWidth(), r.GetHeight()); err != nil {
		return nil, fmt.Errorf("resize %s: %w", p, err)
	}
	return &emptypb.Empty{}, nil
}
