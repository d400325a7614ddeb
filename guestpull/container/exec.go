package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/guestpull/container/origin"
	"github.com/coffer-project/coffer/guestpull/container/spec"
	"github.com/coffer-project/coffer/guestpull/container/stdio"
	agentpb "github.com/coffer-project/coffer/proto/agent"
	"github.com/coffer-project/coffer/proto/oci"
)

// Bounds on the execs of one container. Finished ones are kept so that their output and status can still be read.
const (
	maxExecs    = 512
	keptExecs   = 64
	maxTermLog  = 4096 // bytes; what Kubernetes shows of a termination message
	terminalMax = 65535
)

// Exec starts a further process in a running container.
func (m *Manager) Exec(ctx context.Context, req *agentpb.ExecProcessRequest) (retErr error) {
	c, err := m.get(req.GetContainerId())
	if err != nil {
		return err
	}
	if err := checkExec(c, req); err != nil {
		return err
	}
	if err := c.require(StateRunning); err != nil {
		return err
	}
	process, err := spec.BuildProcess(orEmpty(req.GetProcess()))
	if err != nil {
		return fmt.Errorf("exec %s in container %s: %w", req.GetExecId(), c.id, err)
	}
	// What the host leaves out comes from the image, as for the first process.
	origin.Merge(c.config, process)
	if err := spec.CheckProcess(process); err != nil {
		return fmt.Errorf("exec %s in container %s: %w", req.GetExecId(), c.id, err)
	}
	if err := c.unsealExec(process); err != nil {
		return fmt.Errorf("exec %s in container %s: %w", req.GetExecId(), c.id, err)
	}
	if _, err := c.resolveUser(process, req.GetProcess().GetUser().GetUsername()); err != nil {
		return err
	}
	if err := c.reserveExec(req.GetExecId()); err != nil {
		return err
	}
	defer func() {
		if retErr != nil {
			c.dropExec(req.GetExecId())
		}
	}()
	streams, set, err := m.newStdio(c, process)
	if err != nil {
		return err
	}
	started, err := m.Runtime.Exec(ctx, c.id, process, streams)
	if streams.Child != nil {
		streams.Child.Close()
	}
	if err != nil {
		if set != nil {
			set.Close()
		}
		return fmt.Errorf("exec %s in container %s: %w", req.GetExecId(), c.id, err)
	}
	if process.Terminal {
		set = stdio.Console(started.Console)
	}
	return c.settleExec(ctx, req.GetExecId(), newProcess(req.GetExecId(), started, set))
}

func checkExec(c *Container, req *agentpb.ExecProcessRequest) error {
	if err := CheckID("exec", req.GetExecId()); err != nil {
		return err
	}
	switch {
	case c.sandbox:
		return fmt.Errorf("container %s is the sandbox; nothing runs in it: %w", c.id, errdefs.ErrFailedPrecondition)
	case len(req.GetProcess().GetArgs()) == 0:
		return fmt.Errorf("exec %s: process without arguments: %w", req.GetExecId(), errdefs.ErrInvalidArgument)
	case req.GetExecId() == c.id || req.GetExecId() == c.execID:
		return fmt.Errorf("exec %s: %w", req.GetExecId(), errdefs.ErrAlreadyExists)
	case req.GetStdinPort() != 0 || req.GetStdoutPort() != 0 || req.GetStderrPort() != 0:
		return fmt.Errorf("exec %s: stdio over ports of its own is not offered: %w", req.GetExecId(), errdefs.ErrInvalidArgument)
	case req.GetStringUser().GetUid() != "" || req.GetStringUser().GetGid() != "":
		return fmt.Errorf("exec %s: a user by name belongs in the process: %w", req.GetExecId(), errdefs.ErrInvalidArgument)
	}
	return nil
}

func orEmpty(p *oci.Process) *oci.Process {
	if p == nil {
		return &oci.Process{}
	}
	return p
}

// reserveExec takes the id, so that two calls cannot start the same exec, and forgets the oldest finished ones. The id of one
// whose status was told is free again: clients may give all their execs one name.
func (c *Container) reserveExec(id string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p, taken := c.execs[id]; taken {
		if p == nil || !p.exited() || !p.waited.Load() {
			return fmt.Errorf("exec %s in container %s: %w", id, c.id, errdefs.ErrAlreadyExists)
		}
		p.streams.Close()
		delete(c.execs, id)
		c.execOrder = slices.DeleteFunc(c.execOrder, func(other string) bool { return other == id })
	}
	c.pruneLocked()
	if len(c.execs) >= maxExecs {
		return fmt.Errorf("container %s has %d execs: %w", c.id, len(c.execs), errdefs.ErrResourceExhausted)
	}
	c.execs[id] = nil
	c.execOrder = append(c.execOrder, id)
	return nil
}

// pruneLocked forgets finished execs beyond keptExecs, the oldest first: those of which the host has everything, and when there
// are too many, also those whose status nobody asked for.
func (c *Container) pruneLocked() {
	excess := len(c.execs) - keptExecs
	c.execOrder = slices.DeleteFunc(c.execOrder, func(id string) bool {
		p := c.execs[id]
		if excess <= 0 || p == nil || !p.settled() && !(p.exited() && len(c.execs) >= maxExecs) {
			return false
		}
		p.streams.Close()
		delete(c.execs, id)
		excess--
		return true
	})
}

// settleExec enters the process, unless the container has begun to go away meanwhile.
func (c *Container) settleExec(ctx context.Context, id string, p *process) error {
	c.mu.Lock()
	gone := c.state == StateRemoving
	if !gone {
		c.execs[id] = p
	}
	c.mu.Unlock()
	if !gone {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	return errors.Join(fmt.Errorf("container %s is being removed: %w", c.id, errdefs.ErrFailedPrecondition), p.end(ctx))
}

func (c *Container) dropExec(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.execs, id)
	c.execOrder = slices.DeleteFunc(c.execOrder, func(other string) bool { return other == id })
}

// endExecs kills and forgets all execs. The container must be in removing, so that no new one appears.
func (c *Container) endExecs(ctx context.Context) error {
	c.mu.Lock()
	execs := make(map[string]*process, len(c.execs))
	for id, p := range c.execs {
		if p != nil {
			execs[id] = p
		}
	}
	c.mu.Unlock()
	for id, p := range execs {
		if err := p.end(ctx); err != nil {
			return err
		}
		c.dropExec(id)
	}
	return nil
}

// process finds a process. An empty exec id, the container's id and the exec id of its creation all name the first process.
func (m *Manager) process(id, execID string) (*Container, *process, error) {
	c, err := m.get(id)
	if err != nil {
		return nil, nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.execs[execID]
	if execID == "" || execID == c.id || execID == c.execID {
		p = c.init
	}
	if p == nil {
		return nil, nil, fmt.Errorf("process %s of container %s: %w", execID, id, errdefs.ErrNotFound)
	}
	return c, p, nil
}

// Wait blocks until the process has exited and returns its status: the code, or 128 plus the number of the fatal signal. It may be
// called any number of times until the container is removed.
func (m *Manager) Wait(ctx context.Context, id, execID string) (int32, error) {
	_, p, err := m.process(id, execID)
	if err != nil {
		return 0, err
	}
	status, err := p.wait(ctx)
	if err == nil {
		p.waited.Store(true)
	}
	return status, err
}

// Read returns the next chunk of the process's output, or error output; an empty chunk is its end.
func (m *Manager) Read(ctx context.Context, id, execID string, stderr bool, limit uint32) ([]byte, error) {
	_, p, err := m.process(id, execID)
	if err != nil {
		return nil, err
	}
	if limit == 0 {
		return nil, fmt.Errorf("read of no bytes: %w", errdefs.ErrInvalidArgument)
	}
	read := p.streams.Stdout
	if stderr {
		read = p.streams.Stderr
	}
	data, err := read(ctx, int(min(limit, 1<<20)))
	if err == nil && len(data) == 0 && p.exited() && p.streams.Drained() {
		p.streams.Close() // the descriptors are of no more use
	}
	return data, err
}

// Write hands input to the process; no data at all is the end of the input.
func (m *Manager) Write(ctx context.Context, id, execID string, data []byte) (uint32, error) {
	_, p, err := m.process(id, execID)
	if err != nil {
		return 0, err
	}
	if len(data) == 0 {
		p.streams.CloseStdin()
		return 0, nil
	}
	n, err := p.streams.Write(ctx, data)
	return uint32(n), err
}

// CloseStdin ends the process's input. It is idempotent.
func (m *Manager) CloseStdin(id, execID string) error {
	_, p, err := m.process(id, execID)
	if err == nil {
		p.streams.CloseStdin()
	}
	return err
}

// Resize sets the size of the process's terminal in characters.
func (m *Manager) Resize(id, execID string, rows, columns uint32) error {
	_, p, err := m.process(id, execID)
	if err != nil {
		return err
	}
	if rows > terminalMax || columns > terminalMax {
		return fmt.Errorf("terminal of %d rows and %d columns: %w", rows, columns, errdefs.ErrInvalidArgument)
	}
	return p.streams.Resize(uint16(rows), uint16(columns))
}

// TerminationLog returns what the container left as its last message: the last 4 KiB of it, as kubelet does. NotFound: it has no such
// file.
func (m *Manager) TerminationLog(id string) ([]byte, error) {
	c, err := m.get(id)
	if err != nil {
		return nil, err
	}
	if err := c.require(StateCreated, StateRunning, StatePaused, StateStopped); err != nil {
		return nil, err
	}
	if c.termLog == "" {
		return nil, fmt.Errorf("container %s has no termination log: %w", id, errdefs.ErrNotFound)
	}
	f, err := os.OpenFile(c.termLog, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open termination log of container %s: %w", id, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("termination log of container %s is not a file: %w", id, errdefs.ErrFailedPrecondition)
	}
	return io.ReadAll(io.NewSectionReader(f, max(0, info.Size()-maxTermLog), maxTermLog))
}
