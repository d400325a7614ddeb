package container

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coffer-project/coffer/guestpull/container/origin"
	"github.com/coffer-project/coffer/guestpull/container/rootfs"
	"github.com/coffer-project/coffer/guestpull/container/spec"
)

// maxNoted bounds the names of variables in one line of the log.
const maxNoted = 16

// completeProcess puts the container's process together from the verified image and the request, and notes which part came
// from where.
func (c *Container) completeProcess(ctx context.Context, p *plan) error {
	process := p.spec.Process
	parts := origin.Merge(c.config, process)
	if err := spec.CheckProcess(process); err != nil {
		return fmt.Errorf("container %s: %w", c.id, err)
	}
	user, err := c.resolveUser(process, p.userName)
	if err != nil {
		return err
	}
	// An image whose own user is not in it has no say: then the host must have named another one, or the above had failed.
	if verified, err := rootfs.Resolve(c.root, c.config.User, rootfs.User{}, c.strictGroups); err == nil {
		parts.JudgeUser(process.User, specs.User{UID: verified.UID, GID: verified.GID, AdditionalGids: verified.Groups})
	}
	c.mu.Lock()
	c.user, c.origin = &user, parts
	c.mu.Unlock()
	c.logOrigin(ctx, parts)
	return nil
}

// logOrigin tells what differs from the image, without values.
func (c *Container) logOrigin(ctx context.Context, parts *origin.Process) {
	entry := log.G(ctx).WithFields(log.Fields{
		"container": c.id, "args": parts.Args, "cwd": parts.WorkingDir, "user": parts.User,
		"env_host": len(parts.Names(origin.Host)), "env_overridden": noted(parts, origin.Overridden), "env_restored": noted(parts, origin.Restored),
	})
	if altered := noted(parts, origin.Altered); len(altered) > 0 {
		entry.WithField("env_altered", altered).Warn("the host's variables differ from those of the verified image configuration")
		return
	}
	entry.Info("process compared with the verified image configuration")
}

func noted(parts *origin.Process, o origin.Origin) []string {
	names := parts.Names(o)
	return names[:min(len(names), maxNoted)]
}

// resolveUser completes the process's user from the image, which the host cannot read, and returns it.
func (c *Container) resolveUser(process *specs.Process, name string) (rootfs.User, error) {
	want := rootfs.User{UID: process.User.UID, GID: process.User.GID, Groups: process.User.AdditionalGids}
	user, err := rootfs.Resolve(c.root, name, want, c.strictGroups)
	if err != nil {
		return rootfs.User{}, fmt.Errorf("container %s: %w", c.id, err)
	}
	process.User = specs.User{UID: user.UID, GID: user.GID, AdditionalGids: user.Groups}
	return user, nil
}

// ProcessOrigin returns what of the container's first process is the image's. NotFound: no such container, or it is the
// sandbox, in which no program runs, or the image has not come in yet.
func (m *Manager) ProcessOrigin(id string) (*origin.Process, error) {
	c, err := m.get(id)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.origin == nil {
		return nil, fmt.Errorf("the process of container %s is not known: %w", id, errdefs.ErrNotFound)
	}
	return c.origin, nil
}
