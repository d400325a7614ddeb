package task

import (
	"context"
	"errors"

	"github.com/containerd/log"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coffer-project/coffer/shim/bundle"
	"github.com/coffer-project/coffer/shim/hooks"
)

// runCreateHooks runs what a client without sandboxes wants to happen to the network namespace before its container is
// there. What is to happen after its end is run also when this fails.
func (s *Service) runCreateHooks(ctx context.Context, b *bundle.Bundle, c *container) error {
	if b.Hooks() == nil {
		return nil
	}
	c.mu.Lock()
	c.hooks, c.annotations = b.Hooks(), b.Annotations()
	c.mu.Unlock()
	if err := s.hooked(true); err != nil {
		return err
	}
	if err := hooks.Create(ctx, b.Hooks(), s.hookState(c, specs.StateCreating)); err != nil {
		s.runPoststopHooks(ctx, c)
		return err
	}
	return nil
}

// runPoststopHooks runs what a client wants to happen after its container's end, once. A failure is logged: the container
// has ended all the same.
func (s *Service) runPoststopHooks(ctx context.Context, c *container) {
	c.mu.Lock()
	list := c.hooks
	c.hooks = nil
	c.mu.Unlock()
	if list == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoBudget)
	defer cancel()
	if err := errors.Join(hooks.Poststop(ctx, list, s.hookState(c, specs.StateStopped)), s.hooked(false)); err != nil {
		log.G(ctx).WithError(err).WithField("container", c.id).Error("hooks for the end of the container failed")
	}
}

// single tells whether a bundle's container has made its pod for itself: then its hooks are run.
func (s *Service) single(b *bundle.Bundle) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ownsPod && b.SandboxID() == "" && !b.IsSandbox()
}

func (s *Service) hookState(c *container, status specs.ContainerState) specs.State {
	state := specs.State{Version: specs.Version, ID: c.id, Status: status, Bundle: c.bundle, Annotations: c.annotations}
	if status != specs.StateStopped {
		state.Pid = int(s.pid())
	}
	return state
}
