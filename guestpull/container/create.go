package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coffer-project/coffer/guestpull/container/mount"
	"github.com/coffer-project/coffer/guestpull/container/rootfs"
	"github.com/coffer-project/coffer/guestpull/container/spec"
	"github.com/coffer-project/coffer/guestpull/container/stdio"
	agentpb "github.com/coffer-project/coffer/proto/agent"
	"github.com/coffer-project/coffer/proto/agentpolicy"
)

// Create pulls the container's image and makes the container, whose process then waits for Start. It blocks for the pull. When it
// fails nothing is left. InvalidArgument: the request asks for something that this guest never grants. AlreadyExists: the id is taken.
// Errors of the pull come through with their class.
func (m *Manager) Create(ctx context.Context, req *agentpb.CreateContainerRequest) (retErr error) {
	p, err := m.newPlan(ctx, req)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := &Container{
		id:           p.id,
		execID:       p.execID,
		sandbox:      p.sandbox,
		dir:          filepath.Join(m.Base, p.id),
		cgroup:       m.cgroupPath(p.id),
		root:         m.rootfs(p.id),
		users:        p.users,
		strictGroups: p.strictGroups,
		cancel:       cancel,
		finished:     make(chan struct{}),
		turn:         make(chan struct{}, 1),
		execs:        make(map[string]*process),
	}
	if err := m.reserve(c); err != nil {
		return err
	}
	defer close(c.finished)
	defer func() {
		if retErr != nil {
			retErr = errors.Join(retErr, m.giveUp(ctx, c))
		}
	}()
	if p.sandbox {
		err = m.createSandbox(ctx, c, p, req)
	} else {
		err = m.createWorkload(ctx, c, p, req)
	}
	if err != nil {
		return err
	}
	return c.to(StateCreated)
}

// giveUp undoes a creation. If that fails the container stays, so that Remove can try again.
func (m *Manager) giveUp(ctx context.Context, c *Container) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	if err := c.undo.unwind(ctx); err != nil {
		return errors.Join(fmt.Errorf("undo creation of container %s: %w", c.id, err), c.to(StateRemoving))
	}
	m.forget(c)
	return nil
}

// createSandbox makes the stand-in for a sandbox container: a process that waits. It has no image and no root of its own.
func (m *Manager) createSandbox(ctx context.Context, c *Container, p *plan, req *agentpb.CreateContainerRequest) error {
	if err := m.Policy.AllowContainer(ctx, req, m.facts(p, agentpolicy.StageContainer)); err != nil {
		return err
	}
	for name, value := range p.sysctls {
		if err := m.Sandbox.SetSysctl(name, value); err != nil {
			return err
		}
	}
	set, child, err := stdio.Pipes(m.PipeSize)
	if err != nil {
		return err
	}
	child.Close()
	started, err := m.Holder()
	if err != nil {
		set.Close()
		return fmt.Errorf("start sandbox process %s: %w", c.id, err)
	}
	c.adopt(started, set)
	return nil
}

// createWorkload is the way from a reference to a process that is ready to run.
func (m *Manager) createWorkload(ctx context.Context, c *Container, p *plan, req *agentpb.CreateContainerRequest) error {
	if err := m.makeDir(c); err != nil {
		return err
	}
	if err := m.findDevices(ctx, p); err != nil {
		return err
	}
	if err := m.makeRootfs(ctx, c, p); err != nil {
		return err
	}
	if err := m.mountVolumes(ctx, c, p); err != nil {
		return err
	}
	if err := m.mountStorages(ctx, c.id, p.storages); err != nil {
		return err
	}
	if err := c.completeProcess(ctx, p); err != nil {
		return err
	}
	if err := m.addPassed(ctx, p); err != nil {
		return err
	}
	sealedMounts, err := m.findSealed(c, p)
	if err != nil {
		return err
	}
	facts := m.processFacts(c, p)
	facts.SealedFiles = sealedFacts(sealedMounts)
	// Nothing of it exists yet but files.
	if err := m.Policy.AllowContainer(ctx, req, facts); err != nil {
		return err
	}
	if err := m.unseal(ctx, c, p.spec.Process); err != nil {
		return err
	}
	if err := m.openFiles(ctx, c, sealedMounts); err != nil {
		return err
	}
	// After the secrets are there: a file that is mounted by itself is the one that is there now.
	if err := m.pinMounts(c, p); err != nil {
		return err
	}
	for name, value := range p.sysctls {
		if err := m.Sandbox.SetSysctl(name, value); err != nil {
			return err
		}
	}
	if err := writeSpec(filepath.Join(c.dir, "config.json"), p.spec); err != nil {
		return err
	}
	if err := m.launch(ctx, c, p.spec.Process); err != nil {
		return err
	}
	return c.dropPins()
}

func (m *Manager) makeDir(c *Container) error {
	if err := os.MkdirAll(m.Base, 0o755); err != nil {
		return fmt.Errorf("make folder of container %s: %w", c.id, err)
	}
	if err := os.Mkdir(c.dir, 0o711); err != nil {
		if errors.Is(err, os.ErrExist) {
			return fmt.Errorf("container id %s is a name that this guest uses itself: %w", c.id, errdefs.ErrInvalidArgument)
		}
		return fmt.Errorf("make folder of container %s: %w", c.id, err)
	}
	c.undo.push(func(context.Context) error {
		if err := os.RemoveAll(c.dir); err != nil {
			return fmt.Errorf("remove folder of container %s: %w", c.id, err)
		}
		return nil
	})
	return nil
}

// makeRootfs pulls the image and stacks its layers.
func (m *Manager) makeRootfs(ctx context.Context, c *Container, p *plan) error {
	// Also after a failed pull: whatever it holds for this container is given back.
	c.undo.push(func(ctx context.Context) error { return m.Images.Release(ctx, c.id) })
	img, err := m.Images.Pull(ctx, p.image)
	if err != nil {
		return fmt.Errorf("container %s: %w", c.id, err) // it names the image, the stage and the cause
	}
	p.pulled = img
	c.mu.Lock()
	c.report, c.config = &img.Report, &img.Config.Config
	c.mu.Unlock()
	writable, err := m.makeWritable(ctx, c)
	if err != nil {
		return err
	}
	target := m.rootfs(c.id)
	c.undo.push(func(context.Context) error { return mount.Unmount(target) })
	if err := rootfs.Overlay(img.Layers, writable, target, p.owner()); err != nil {
		return fmt.Errorf("container %s: %w", c.id, err)
	}
	return nil
}

// makeWritable makes the folder for what the container changes of its root: on the scratch disk, if there is one.
func (m *Manager) makeWritable(ctx context.Context, c *Container) (string, error) {
	disk, err := m.Scratch.Dir(ctx)
	if err != nil {
		return "", fmt.Errorf("container %s: %w", c.id, err)
	}
	if disk == "" {
		return c.dir, nil
	}
	dir := filepath.Join(disk, "containers", c.id)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return "", fmt.Errorf("make folder of container %s on the scratch disk: %w", c.id, err)
	}
	c.undo.push(func(context.Context) error {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove folder of container %s on the scratch disk: %w", c.id, err)
		}
		return nil
	})
	return dir, nil
}

func (m *Manager) mountStorages(ctx context.Context, id string, storages []*agentpb.Storage) error {
	for _, s := range storages {
		if err := m.Sandbox.Mount(ctx, s); err != nil {
			return fmt.Errorf("container %s: %w", id, err)
		}
	}
	return nil
}

// pinMounts opens every bind source once and puts the opened object where only the agent can reach it. The host can exchange files
// below the shared folder at any time; after this it cannot change what the runtime will mount.
func (m *Manager) pinMounts(c *Container, p *plan) error {
	pins := filepath.Join(c.dir, "mounts")
	if err := os.Mkdir(pins, 0o711); err != nil {
		return fmt.Errorf("make folder of container %s: %w", c.id, err)
	}
	for i := range p.spec.Mounts {
		mnt := &p.spec.Mounts[i]
		if mnt.Type != spec.Bind {
			continue
		}
		target := filepath.Join(pins, strconv.Itoa(i))
		if p.termDest != "" && mnt.Destination == p.termDest {
			// The host reads it back, so it must not choose which file that is: it is an empty one, whatever the source.
			if err := newTermLog(target); err != nil {
				return fmt.Errorf("container %s: %w", c.id, err)
			}
			mnt.Source, c.termLog = target, target
			continue
		}
		if mount.Below(m.sandboxDir(), mnt.Source) {
			if err := m.pinVolume(c, mnt, target); err != nil {
				return fmt.Errorf("container %s: mount at %s: %w", c.id, mnt.Destination, err)
			}
			continue
		}
		if err := m.pin(p, mnt, target); err != nil {
			return fmt.Errorf("container %s: mount at %s: %w", c.id, mnt.Destination, err)
		}
		c.undo.push(func(context.Context) error { return mount.Unmount(target) })
		mnt.Source = target
	}
	return nil
}

// newTermLog makes the file for a container's last message; any user of the container may write it.
func newTermLog(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o666)
	if err != nil {
		return fmt.Errorf("make termination log: %w", err)
	}
	if err := errors.Join(f.Chmod(0o666), f.Close()); err != nil {
		return fmt.Errorf("make termination log: %w", err)
	}
	return nil
}

func writeSpec(path string, s *specs.Spec) error {
	data, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encode specification: %w", err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return fmt.Errorf("write specification: %w", err)
	}
	return nil
}

// launch has the runtime create the container.
func (m *Manager) launch(ctx context.Context, c *Container, process *specs.Process) error {
	io, set, err := m.newStdio(c, process)
	if err != nil {
		return err
	}
	c.undo.push(func(ctx context.Context) error { return m.Cgroups.Remove(ctx, c.cgroup) })
	c.undo.push(func(ctx context.Context) error { return m.Runtime.Delete(ctx, c.id) })
	started, err := m.Runtime.Create(ctx, c.id, c.dir, io)
	if io.Child != nil {
		io.Child.Close()
	}
	if err != nil {
		if set != nil {
			set.Close()
		}
		return fmt.Errorf("create container %s: %w", c.id, err)
	}
	if process.Terminal {
		set = stdio.Console(started.Console)
	}
	c.adopt(started, set)
	return nil
}

// newStdio prepares streams. With a terminal there is no set yet: the runtime makes the terminal.
func (m *Manager) newStdio(c *Container, process *specs.Process) (Stdio, *stdio.Set, error) {
	if process.Terminal {
		return Stdio{Terminal: true}, nil, nil
	}
	set, child, err := stdio.Pipes(m.PipeSize)
	if err != nil {
		return Stdio{}, nil, err
	}
	// In a user namespace the runtime may not give the pipes, which are the guest's, to the process: it could not open
	// /dev/stdout anew.
	if uid, gid, ok := c.users.Guest(process.User.UID, process.User.GID); ok && c.users.Mapped() {
		if err := child.Chown(int(uid), int(gid)); err != nil {
			child.Close()
			set.Close()
			return Stdio{}, nil, fmt.Errorf("give the streams of container %s to its user: %w", c.id, err)
		}
	}
	return Stdio{Child: child}, set, nil
}

// adopt makes the started process the container's first one.
func (c *Container) adopt(started Process, set *stdio.Set) {
	init := newProcess(c.id, started, set)
	c.mu.Lock()
	c.init = init
	c.mu.Unlock()
	c.undo.push(func(ctx context.Context) error { return init.end(ctx) })
	go func() {
		<-init.done
		<-c.finished
		// Not allowed any more when the container is being removed, which is as it should be.
		_ = c.to(StateStopped)
	}()
}
