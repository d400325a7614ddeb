package container

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/guestpull/container/spec"
	agentpb "github.com/coffer-project/coffer/proto/agent"
)

// Start runs the program of a created container. FailedPrecondition: it is not in that state.
func (m *Manager) Start(ctx context.Context, id string) error {
	c, err := m.get(id)
	if err != nil {
		return err
	}
	end, err := c.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if err := c.require(StateCreated); err != nil {
		return err
	}
	if !c.sandbox {
		if m.Cgroups.Unified() {
			stop, err := m.Sandbox.WatchOOM(c.id, c.cgroup)
			if err != nil {
				return fmt.Errorf("start container %s: %w", id, err)
			}
			c.undo.push(func(context.Context) error { stop(); return nil })
		}
		if err := m.Runtime.Start(ctx, id); err != nil {
			return fmt.Errorf("start container %s: %w", id, err)
		}
	}
	// A program that has ended by now has made the container stopped already; it has been started nevertheless.
	if err := c.to(StateRunning); err != nil && c.State() != StateStopped {
		return err
	}
	return nil
}

// Pause freezes all processes of a running container.
func (m *Manager) Pause(ctx context.Context, id string) error {
	return m.freeze(ctx, id, StateRunning, StatePaused)
}

// Resume lets the processes of a paused container go on.
func (m *Manager) Resume(ctx context.Context, id string) error {
	return m.freeze(ctx, id, StatePaused, StateRunning)
}

func (m *Manager) freeze(ctx context.Context, id string, from, next State) error {
	c, err := m.get(id)
	if err != nil {
		return err
	}
	end, err := c.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if err := c.require(from); err != nil {
		return err
	}
	if !c.sandbox {
		if err := m.Runtime.Freeze(ctx, id, next == StatePaused); err != nil {
			return fmt.Errorf("make container %s %s: %w", id, next, err)
		}
	}
	return c.to(next)
}

// Update changes the limits that are set in the request.
func (m *Manager) Update(ctx context.Context, req *agentpb.UpdateContainerRequest) error {
	c, err := m.get(req.GetContainerId())
	if err != nil {
		return err
	}
	resources, err := spec.BuildResources(req.GetResources())
	if err != nil {
		return fmt.Errorf("update container %s: %w", c.id, err)
	}
	end, err := c.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if err := c.require(StateCreated, StateRunning, StatePaused); err != nil {
		return err
	}
	if c.sandbox {
		return nil
	}
	if err := m.Runtime.Update(ctx, c.id, resources); err != nil {
		return fmt.Errorf("update container %s: %w", c.id, err)
	}
	return nil
}

// Signal signals the first process (an empty exec id or the container's own), or one exec. With an empty exec id, SIGKILL reaches
// all processes of the container. NotFound: the process has exited.
func (m *Manager) Signal(ctx context.Context, id, execID string, signal uint32) error {
	if signal == 0 || signal > 64 {
		return fmt.Errorf("signal %d: %w", signal, errdefs.ErrInvalidArgument)
	}
	c, p, err := m.process(id, execID)
	if err != nil {
		return err
	}
	if execID != "" || unix.Signal(signal) != unix.SIGKILL || c.sandbox {
		return p.signal(unix.Signal(signal))
	}
	if err := m.Runtime.Kill(ctx, id, int(signal)); err != nil {
		return fmt.Errorf("kill container %s: %w", id, err)
	}
	return nil
}

// Remove kills whatever runs in the container and removes all of it, in every state. timeout bounds it when it is not zero; it goes on
// when the caller goes away. NotFound: there is no such container. After another error it may be called again.
func (m *Manager) Remove(ctx context.Context, id string, timeout time.Duration) error {
	c, err := m.get(id)
	if err != nil {
		return err
	}
	if timeout <= 0 || timeout > cleanupTimeout {
		timeout = cleanupTimeout
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	if c.State() == StateCreating {
		c.cancel()
	}
	select {
	case <-c.finished:
	case <-ctx.Done():
		return fmt.Errorf("remove container %s: its creation does not end: %w", id, ctx.Err())
	}
	end, err := c.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if now, err := m.get(id); err != nil || now != c {
		return nil // a given-up creation or another Remove has done it
	}
	if c.State() == StatePaused {
		m.killFrozen(ctx, c)
	}
	if err := c.to(StateRemoving); err != nil {
		return err
	}
	if err := c.endExecs(ctx); err != nil {
		return fmt.Errorf("remove container %s: %w", id, err)
	}
	if err := c.undo.unwind(ctx); err != nil {
		return fmt.Errorf("remove container %s: %w", id, err)
	}
	m.forget(c)
	log.G(ctx).WithField("container", id).Info("container removed")
	return nil
}

// killFrozen ends a paused container. A frozen process dies only when it is let go, and it is killed before, so that it does nothing any
// more. What fails here shows when the processes are waited for.
func (m *Manager) killFrozen(ctx context.Context, c *Container) {
	if c.sandbox {
		return
	}
	err := errors.Join(m.Runtime.Kill(ctx, c.id, int(unix.SIGKILL)), m.Runtime.Freeze(ctx, c.id, false))
	if err != nil {
		log.G(ctx).WithError(err).WithField("container", c.id).Debug("paused container may not have been let go")
	}
}

// RemoveAll removes every container, for the end of the pod.
func (m *Manager) RemoveAll(ctx context.Context) error {
	var first error
	for _, id := range m.IDs() {
		if err := m.Remove(ctx, id, 0); err != nil && !errdefs.IsNotFound(err) && first == nil {
			first = err
		}
	}
	return first
}
