package vfio

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"github.com/coffer-project/coffer/shim/vm"
)

// state is where a claim stands.
type state int

const (
	stateReserved state = iota
	stateAdded
	stateRemoving
	stateRemoved
)

func (s state) String() string { return [...]string{"reserved", "added", "removing", "removed"}[s] }

type event int

const (
	eventAdd event = iota
	eventRemove
	eventRemoved
)

func (e event) String() string { return [...]string{"add", "remove", "removed"}[e] }

// transitions are all that may happen to a claim.
var transitions = map[state]map[event]state{
	stateReserved: {eventAdd: stateAdded, eventRemove: stateRemoving},
	stateAdded:    {eventAdd: stateAdded, eventRemove: stateRemoving},
	stateRemoving: {eventRemove: stateRemoving, eventRemoved: stateRemoved},
	stateRemoved:  {eventRemove: stateRemoving},
}

// next fails with errdefs.ErrFailedPrecondition for what the state does not allow.
func (s state) next(e event) (state, error) {
	to, ok := transitions[s][e]
	if !ok {
		return s, fmt.Errorf("%s devices that are %s: %w", e, s, errdefs.ErrFailedPrecondition)
	}
	return to, nil
}

// Claim is what a pod has. Its methods are safe for concurrent use.
type Claim struct {
	manager *Manager
	owner   Owner

	mu    sync.Mutex
	state state
	held  []*held
}

// held is a device that is kept for a pod.
type held struct {
	device Device
	lock   *os.File
	record record
}

// Add makes the devices ready for a VM and returns them in the order in which the guest is to see them. The files in them are the
// claim's, and the VM's monitor must inherit them. A claim may be added again. When it fails, the caller calls Remove.
func (c *Claim) Add(ctx context.Context) ([]vm.PCIDevice, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	to, err := c.state.next(eventAdd)
	if err != nil {
		return nil, err
	}
	var out []vm.PCIDevice
	for _, h := range c.held {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := c.manager.prepare(h); err != nil {
			return nil, err
		}
		d := h.device
		out = append(out, vm.PCIDevice{
			Address: d.Address, VendorID: d.Vendor, DeviceID: d.ID, BARs: d.BARs, NUMANode: d.NUMANode,
			OwnNode: c.manager.ownNode(d), Claim: h.lock,
		})
	}
	c.state = to
	return out, nil
}

// prepare writes down that the device is going to change, and binds it if need be.
func (m *Manager) prepare(h *held) error {
	address := h.device.Address
	if !boundToVFIO(h.device.Driver) {
		override, err := m.Host.override(address)
		if err != nil {
			return fmt.Errorf("read who drives %s: %w", address, err)
		}
		h.record.Rebound, h.record.Driver, h.record.Override = true, h.device.Driver, override
	}
	h.record.Touched = true
	if err := m.writeRecord(address, h.record); err != nil {
		return err
	}
	if boundToVFIO(h.device.Driver) {
		return nil
	}
	if err := m.Host.bind(address); err != nil {
		return err
	}
	now, err := m.Host.Device(address)
	if err != nil {
		return err
	}
	h.device.Driver, h.device.Char = now.Driver, now.Char
	return nil
}

// ownNode tells whether the device is opened by its own node, with iommufd: where the kernel has that, unless the pod was given
// the group's node.
func (m *Manager) ownNode(d Device) bool {
	return d.Char != "" && !d.legacy && exists(m.Host.dev("iommu"))
}

// Remove gives the devices back, reset and to the drivers that they were taken from. The VM must have ended: a device that its
// monitor still holds fails with errdefs.ErrUnavailable. It is idempotent; after a failure it may be tried again.
func (c *Claim) Remove(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	to, err := c.state.next(eventRemove)
	if err != nil {
		return err
	}
	c.state = to
	// A reset takes a GPU some tenths of a second.
	var group errgroup.Group
	faults := make([]error, len(c.held))
	for i, h := range c.held {
		group.Go(func() error {
			if faults[i] = ctx.Err(); faults[i] == nil {
				faults[i] = c.manager.drop(c.owner, h)
			}
			return nil
		})
	}
	_ = group.Wait() // the faults tell
	kept := slices.Clone(c.held)[:0]
	for i, h := range c.held {
		if faults[i] != nil {
			kept = append(kept, h)
		}
	}
	c.held = kept
	if err := errors.Join(faults...); err != nil {
		return fmt.Errorf("give devices back: %w", err)
	}
	c.state, err = c.state.next(eventRemoved)
	return err
}

// drop gives one device back.
func (m *Manager) drop(owner Owner, h *held) error {
	address := h.device.Address
	if h.lock != nil {
		// The VM's monitor has the same lock. Whether it is gone shows in taking the lock anew.
		err := h.lock.Close()
		h.lock = nil
		if err != nil {
			return fmt.Errorf("unlock device %s: %w", address, err)
		}
	}
	lock, err := m.lock(address)
	if errors.Is(err, errInUse) {
		if r, _ := m.readRecord(address); r == nil || r.Owner != owner {
			return nil // another pod was faster, and has put the device back before it took it
		}
		return fmt.Errorf("device %s is still held by the VM: %w", address, errdefs.ErrUnavailable)
	}
	if err != nil {
		return err
	}
	r, err := m.readRecord(address)
	if err == nil && r != nil && r.Owner == owner {
		if err = m.putBack(address, *r); err == nil {
			err = m.removeRecord(address)
		}
	}
	return errors.Join(err, lock.Close())
}
