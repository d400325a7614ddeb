package vfio

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

// Manager keeps the node's devices apart. All shims of a node use the same Dir.
type Manager struct {
	Host Host
	// Dir holds a lock and, while it is in use, a record for each device. It is made if it is missing.
	Dir string
	// Bind allows the manager to take devices that the node's CDI specifications name from their drivers. They are given
	// back when the pod ends.
	Bind bool
	// MaxDevices bounds what one pod may have.
	MaxDevices int
	// Confidential says that the pod's VM is one whose memory the host cannot read; see checkFabric.
	Confidential bool
}

// Reserve keeps devices for a pod, each with the other functions of the same card in its group. A device that a dead owner has
// left is put in order first. It fails with errdefs.ErrUnavailable when a device is in use, and with
// errdefs.ErrFailedPrecondition when one cannot be handed out: it shares its group, it is not bound to VFIO, or the pod would have
// a part of an NVLink fabric that does not work by itself. A failed call leaves nothing reserved. The caller calls Remove.
func (m *Manager) Reserve(ctx context.Context, owner Owner, devices []Device) (_ *Claim, retErr error) {
	devices, err := m.Host.whole(devices)
	if err != nil {
		return nil, err
	}
	c := &Claim{manager: m, owner: owner}
	if len(devices) == 0 {
		return c, nil
	}
	if len(devices) > m.MaxDevices {
		return nil, fmt.Errorf("the pod asks for %d devices, more than %d (devices.pcie_root_port): %w",
			len(devices), m.MaxDevices, errdefs.ErrFailedPrecondition)
	}
	if err := checkFabric(m.Host, devices, m.Confidential); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(m.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make folder for reservations: %w", err)
	}
	defer func() {
		if retErr != nil {
			retErr = errors.Join(retErr, c.Remove(context.WithoutCancel(ctx)))
		}
	}()
	for _, d := range devices {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		h, err := m.hold(ctx, owner, d)
		if err != nil {
			return nil, err
		}
		c.held = append(c.held, h)
	}
	return c, nil
}

// hold takes one device.
func (m *Manager) hold(ctx context.Context, owner Owner, d Device) (_ *held, retErr error) {
	lock, err := m.lock(d.Address)
	if errors.Is(err, errInUse) {
		return nil, fmt.Errorf("device %s is in use%s: %w", d, m.user(d.Address), errdefs.ErrUnavailable)
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if retErr != nil {
			retErr = errors.Join(retErr, lock.Close())
		}
	}()
	if err := m.restore(ctx, d.Address); err != nil {
		return nil, err
	}
	// What was read before the lock was taken may have changed meanwhile.
	now, err := m.Host.Device(d.Address)
	if err != nil {
		return nil, err
	}
	now.wanted, now.legacy, now.trusted = d.wanted, d.legacy, d.trusted
	if !boundToVFIO(now.Driver) && !(m.Bind && now.trusted) {
		return nil, unbound(now)
	}
	h := &held{device: now, lock: lock, record: record{Owner: owner}}
	if err := m.writeRecord(d.Address, h.record); err != nil {
		return nil, err
	}
	return h, nil
}

// user tells whose a device is, for errors.
func (m *Manager) user(address string) string {
	if r, err := m.readRecord(address); err == nil && r != nil {
		return " by pod " + r.Owner.Pod
	}
	return ""
}

func unbound(d Device) error {
	hint := "bind it before (the GPU Operator's vfio-manager does so; by hand: driverctl set-override " + d.Address + " vfio-pci)"
	if d.trusted {
		hint += ", or let Coffer do it (devices.bind)"
	}
	return fmt.Errorf("device %s is not bound to vfio-pci, without which it cannot be given to a VM: %s: %w", d, hint, errdefs.ErrFailedPrecondition)
}

// restore puts a device back as its record, if there is one, says that it was. The caller has the lock, so the owner is dead.
func (m *Manager) restore(ctx context.Context, address string) error {
	r, err := m.readRecord(address)
	if err != nil || r == nil {
		return err
	}
	log.G(ctx).WithField("device", address).WithField("owner", r.Owner.Pod).Warn("device was left by a pod that is dead, putting it back")
	if err := m.putBack(address, *r); err != nil {
		return fmt.Errorf("put device %s back, which a dead pod has left: %w", address, err)
	}
	return m.removeRecord(address)
}

// putBack undoes what was done to a device. It is idempotent. A device that has left the machine needs nothing.
func (m *Manager) putBack(address string, r record) error {
	if !r.Touched || !exists(m.Host.pci(address)) {
		return nil
	}
	if err := m.Host.reset(address); err != nil {
		return err
	}
	if !r.Rebound {
		return nil
	}
	if err := m.Host.rebind(address, r.Driver, r.Override); err != nil {
		return fmt.Errorf("give %s back to driver %q: %w", address, r.Driver, err)
	}
	return nil
}

// Recover puts back the devices that the pod with the state directory dir has left. Its VM must have ended. It is idempotent,
// and succeeds when the pod has left none, or others have put them back. It fails with errdefs.ErrUnavailable for a device that is
// still in use.
func (m *Manager) Recover(ctx context.Context, dir string) error {
	records, err := filepath.Glob(filepath.Join(m.Dir, "*.json"))
	if err != nil {
		return err
	}
	var faults []error
	for _, path := range records {
		if err := m.recover(ctx, strings.TrimSuffix(filepath.Base(path), ".json"), dir); err != nil {
			faults = append(faults, err)
		}
	}
	return errors.Join(faults...)
}

func (m *Manager) recover(ctx context.Context, address, dir string) error {
	r, err := m.readRecord(address)
	if err != nil || r == nil || r.Owner.Dir != dir {
		return err
	}
	lock, err := m.lock(address)
	if errors.Is(err, errInUse) {
		// Either a process of the dead pod lives on, or the next pod has just taken the device and puts it back itself.
		if r, _ := m.readRecord(address); r == nil || r.Owner.Dir != dir {
			return nil
		}
		return fmt.Errorf("device %s is still held by a process of the pod that is to be cleaned up: %w", address, errdefs.ErrUnavailable)
	}
	if err != nil {
		return err
	}
	if r, err = m.readRecord(address); err == nil && r != nil && r.Owner.Dir == dir {
		err = m.restore(ctx, address)
	}
	return errors.Join(err, lock.Close())
}
