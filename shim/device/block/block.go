package block

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/shim/vm"
)

// VM is what the package needs of the pod's VM.
type VM interface {
	AttachDisk(ctx context.Context, disk vm.HotDisk) (address string, err error)
	DetachDisk(ctx context.Context, serial string) error
}

// Device names a block device of the host, as an OCI specification does.
type Device struct {
	Major, Minor uint32
	// ReadOnly opens it for reading alone.
	ReadOnly bool
}

func (d Device) String() string {
	mode := "read-write"
	if d.ReadOnly {
		mode = "read-only"
	}
	return fmt.Sprintf("block device %d:%d (%s)", d.Major, d.Minor, mode)
}

// serial identifies the disk to the guest.
func (d Device) serial() string {
	mode := "rw"
	if d.ReadOnly {
		mode = "ro"
	}
	return fmt.Sprintf("b%d-%d-%s", d.Major, d.Minor, mode)
}

type state int

const (
	stateReserved state = iota
	stateAdded
	stateInvalid
)

// Manager holds the block devices of one pod. Its methods are safe for concurrent use.
type Manager struct {
	vm   VM
	open opener

	mu      sync.Mutex
	devices map[Device]*shared
}

// shared is a device with those who use it.
type shared struct {
	device Device

	mu      sync.Mutex // held while the VM is asked
	state   state
	address string

	claims int // guarded by Manager.mu
}

// New makes the manager of a pod's VM.
func New(machine VM) *Manager { return newManager(machine, openDevice) }

func newManager(machine VM, open opener) *Manager {
	return &Manager{vm: machine, open: open, devices: map[Device]*shared{}}
}

// Claim is one container's use of a device. It is not safe for concurrent use.
type Claim struct {
	manager  *Manager
	shared   *shared
	released bool
}

// Reserve enters a use of the device. Nothing is opened or plugged in yet. The caller calls Remove.
func (m *Manager) Reserve(device Device) *Claim {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok := m.devices[device]
	if !ok {
		s = &shared{device: device}
		m.devices[device] = s
	}
	s.claims++
	return &Claim{manager: m, shared: s}
}

// Add makes the device part of the VM, unless it is already, and returns its address there, see vm.Instance. It fails with
// errdefs.ErrNotFound when the host has no such device, and with errdefs.ErrFailedPrecondition when the guest has not
// let go of an earlier use.
func (c *Claim) Add(ctx context.Context) (string, error) {
	s := c.shared
	s.mu.Lock()
	defer s.mu.Unlock()
	switch s.state {
	case stateAdded:
		return s.address, nil
	case stateInvalid:
		return "", fmt.Errorf("%s: the guest has not let go of it since its last use, create the pod anew: %w",
			s.device, errdefs.ErrFailedPrecondition)
	}
	file, err := c.manager.open(s.device)
	if err != nil {
		return "", fmt.Errorf("%s: %w", s.device, err)
	}
	defer file.Close() // the VM has its own
	address, err := c.manager.vm.AttachDisk(ctx, vm.HotDisk{Serial: s.device.serial(), File: file, ReadOnly: s.device.ReadOnly})
	if err != nil {
		return "", fmt.Errorf("%s: %w", s.device, err)
	}
	s.state, s.address = stateAdded, address
	return address, nil
}

// Remove ends the use, and takes the device out of the VM when it was the last one. It is idempotent; after a failure it
// tries again.
func (c *Claim) Remove(ctx context.Context) error {
	m, s := c.manager, c.shared
	s.mu.Lock()
	defer s.mu.Unlock()
	if !c.released {
		c.released = true
		m.mu.Lock()
		s.claims--
		m.mu.Unlock()
	}
	if m.used(s) {
		return nil
	}
	if s.state != stateReserved {
		if err := m.vm.DetachDisk(ctx, s.device.serial()); err != nil {
			s.state = stateInvalid
			return fmt.Errorf("%s: %w", s.device, err)
		}
		s.state, s.address = stateReserved, ""
	}
	m.forget(s)
	return nil
}

// used tells whether a container still counts on the device. An invalid one serves nobody, whoever has reserved it.
func (m *Manager) used(s *shared) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return s.claims > 0 && s.state != stateInvalid
}

// forget drops a device that nobody has reserved meanwhile.
func (m *Manager) forget(s *shared) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s.claims == 0 && m.devices[s.device] == s {
		delete(m.devices, s.device)
	}
}

// RemoveAll ends several uses; it tries all of them.
func RemoveAll(ctx context.Context, claims []*Claim) error {
	var faults []error
	for _, claim := range claims {
		faults = append(faults, claim.Remove(ctx))
	}
	return errors.Join(faults...)
}
