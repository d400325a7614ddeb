package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/shim/vm"
	"github.com/coffer-project/coffer/shim/vm/qemu/qmp"
)

const (
	// bridge is the PCI bridge for disks, at slot bridgeSlot of the root bus.
	bridge     = "volumes"
	bridgeSlot = 0x1e
	// lastSlot is the last slot of a PCI bus; slot 0 belongs to the bridge's own hot-plug controller.
	lastSlot = 31
)

// hotDisk is a disk that was plugged in, or is about to be.
type hotDisk struct {
	serial string
	slot   int
	// gone is closed when QEMU says that the device is out of the machine.
	gone chan struct{}
	// leaving is true once QEMU was asked to take it out; it belongs to whoever detaches the disk.
	leaving bool
}

// device and node name the disk in QEMU.
func (d *hotDisk) device() string { return fmt.Sprintf("volume%d", d.slot) }
func (d *hotDisk) node() string   { return fmt.Sprintf("volume-node%d", d.slot) }

// slots are the disks behind the bridge, by slot.
type slots struct {
	mu    sync.Mutex
	disks [lastSlot + 1]*hotDisk
}

// reserve finds a slot.
func (s *slots) reserve(serial string) (*hotDisk, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	free := 0
	for slot := lastSlot; slot > 0; slot-- {
		switch d := s.disks[slot]; {
		case d == nil:
			free = slot
		case d.serial == serial:
			return nil, fmt.Errorf("disk %s: %w", serial, errdefs.ErrAlreadyExists)
		}
	}
	if free == 0 {
		return nil, fmt.Errorf("%w: the vm has %d hot-plugged disks already", errdefs.ErrResourceExhausted, lastSlot)
	}
	s.disks[free] = &hotDisk{serial: serial, slot: free, gone: make(chan struct{})}
	return s.disks[free], nil
}

func (s *slots) find(serial string) *hotDisk {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.disks {
		if d != nil && d.serial == serial {
			return d
		}
	}
	return nil
}

func (s *slots) free(d *hotDisk) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.disks[d.slot] = nil
}

// take hears of devices that have left the machine.
func (s *slots) take(event qmp.Event) {
	var data struct{ Device string }
	if event.Name != "DEVICE_DELETED" || json.Unmarshal(event.Data, &data) != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.disks {
		if d == nil || d.device() != data.Device {
			continue
		}
		select {
		case <-d.gone:
		default:
			close(d.gone)
		}
	}
}

// AttachDisk implements vm.Instance.
func (i *Instance) AttachDisk(ctx context.Context, disk vm.HotDisk) (_ string, retErr error) {
	defer func() {
		if retErr != nil {
			retErr = fmt.Errorf("plug disk into vm %s: %w", i.config.ID, retErr)
		}
	}()
	monitor, err := i.running()
	if err != nil {
		return "", err
	}
	driver, err := blockDriver(disk)
	if err != nil {
		return "", err
	}
	d, err := i.slots.reserve(disk.Serial)
	if err != nil {
		return "", err
	}
	if err := plug(ctx, monitor, d, disk, driver); err != nil {
		i.slots.free(d)
		return "", err
	}
	return fmt.Sprintf("%02x/%02x", bridgeSlot, d.slot), nil
}

// blockDriver tells how QEMU is to open the file.
func blockDriver(disk vm.HotDisk) (string, error) {
	if !serialPattern.MatchString(disk.Serial) {
		return "", fmt.Errorf("serial %q: %w", disk.Serial, errdefs.ErrInvalidArgument)
	}
	info, err := disk.File.Stat()
	if err != nil {
		return "", err
	}
	switch {
	case info.Mode().IsRegular():
		return "file", nil
	case info.Mode()&os.ModeDevice != 0 && info.Mode()&os.ModeCharDevice == 0:
		return "host_device", nil
	}
	return "", fmt.Errorf("%s is no block device: %w", disk.File.Name(), errdefs.ErrInvalidArgument)
}

// plug hands the open file over, so that QEMU opens no path of the host, and makes a device of it.
func plug(ctx context.Context, monitor *qmp.Client, d *hotDisk, disk vm.HotDisk, driver string) error {
	set := map[string]any{"fdset-id": d.slot}
	if err := monitor.ExecuteWithFile(ctx, "add-fd", set, nil, disk.File); err != nil {
		return err
	}
	err := monitor.Execute(ctx, "blockdev-add", map[string]any{
		"driver": "raw", "node-name": d.node(), "read-only": disk.ReadOnly,
		"file": map[string]any{
			"driver": driver, "filename": fmt.Sprintf("/dev/fdset/%d", d.slot), "read-only": disk.ReadOnly,
		},
	}, nil)
	// QEMU has its own copy now, or will never need one.
	if err = errors.Join(err, undo(ctx, monitor, "remove-fd", set)); err != nil {
		return errors.Join(err, ignoreRefusal(undo(ctx, monitor, "blockdev-del", map[string]any{"node-name": d.node()})))
	}
	err = monitor.Execute(ctx, "device_add", map[string]any{
		"driver": "virtio-blk-pci", "id": d.device(), "bus": bridge, "addr": fmt.Sprintf("%#x", d.slot), "drive": d.node(),
		"serial": disk.Serial, "disable-legacy": "on",
		// Several pods may use one device, as they may without VMs: who may is the orchestrator's decision.
		"share-rw": true,
	}, nil)
	if err != nil {
		return errors.Join(err, undo(ctx, monitor, "blockdev-del", map[string]any{"node-name": d.node()}))
	}
	return nil
}

// undo runs a command although ctx may have ended.
func undo(ctx context.Context, monitor *qmp.Client, name string, arguments any) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	return monitor.Execute(ctx, name, arguments, nil)
}

// ignoreRefusal forgets what QEMU itself refuses: there is nothing to take back.
func ignoreRefusal(err error) error {
	if _, refused := errors.AsType[*qmp.Error](err); refused {
		return nil
	}
	return err
}

// DetachDisk implements vm.Instance.
func (i *Instance) DetachDisk(ctx context.Context, serial string) error {
	d := i.slots.find(serial)
	if d == nil {
		return nil
	}
	monitor, err := i.running()
	if err != nil {
		return nil // the VM's end has released it
	}
	if err := i.unplug(ctx, monitor, d); err != nil {
		select {
		case <-i.done:
			return nil
		default:
			return fmt.Errorf("take disk %s out of vm %s: %w", serial, i.config.ID, err)
		}
	}
	i.slots.free(d)
	return nil
}

func (i *Instance) unplug(ctx context.Context, monitor *qmp.Client, d *hotDisk) error {
	if err := i.askOut(ctx, monitor, d); err != nil {
		return err
	}
	select {
	case <-d.gone:
	case <-i.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the guest has not let go of it: %w", ctx.Err())
	}
	return undo(ctx, monitor, "blockdev-del", map[string]any{"node-name": d.node()})
}

// askOut tells the guest to let go of the device; once is enough, unless QEMU refused.
func (i *Instance) askOut(ctx context.Context, monitor *qmp.Client, d *hotDisk) error {
	if d.leaving {
		return nil
	}
	if err := monitor.Execute(ctx, "device_del", map[string]any{"id": d.device()}, nil); err != nil {
		return err
	}
	d.leaving = true
	return nil
}

// running is the monitor of a VM that runs.
func (i *Instance) running() (*qmp.Client, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.state != stateRunning {
		return nil, fmt.Errorf("%w: it is %s", errdefs.ErrFailedPrecondition, i.state)
	}
	return i.monitor, nil
}
