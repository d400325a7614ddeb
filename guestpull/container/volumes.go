package container

import (
	"context"
	"errors"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coffer-project/coffer/guestpull/container/mount"
	"github.com/coffer-project/coffer/guestpull/container/spec"
)

// kinds are the ways in which a container sees mounts that others make in a volume.
var kinds = map[string]mount.Propagation{
	spec.PropagationPrivate: mount.Private, spec.PropagationSlave: mount.Slave, spec.PropagationShared: mount.Shared,
}

// pinVolume does for a storage of the pod what pin does for other sources. The pin itself has the propagation that was asked for, so that
// a container gets no more of it whatever the runtime makes of its options.
func (m *Manager) pinVolume(c *Container, mnt *specs.Mount, target string) error {
	kind := kinds[spec.PropagationOf(mnt.Options)]
	src, release, err := m.Sandbox.OpenVolume(mnt.Source, kind == mount.Shared)
	if err != nil {
		return err
	}
	defer src.Close()
	c.undo.push(release)
	remove, err := mount.PinVolume(src, target, kind)
	if err != nil {
		return err
	}
	c.undo.push(func(context.Context) error { return remove() })
	c.pins = append(c.pins, remove)
	mnt.Source = target
	return nil
}

// dropPins unmounts the volumes where the runtime has found them: what containers mount in them is not to gather among the guest's own
// mounts.
func (c *Container) dropPins() error {
	var faults []error
	for _, remove := range c.pins {
		faults = append(faults, remove())
	}
	return errors.Join(faults...)
}
