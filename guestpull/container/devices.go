package container

import (
	"context"
	"fmt"
	"slices"

	"github.com/coffer-project/coffer/guestpull/container/spec"
	"github.com/coffer-project/coffer/guestpull/disk"
	agentpb "github.com/coffer-project/coffer/proto/agent"
)

// The kinds of devices in a request.
const (
	// typeBlock is a virtio disk.
	typeBlock = "blk"
	// typeVFIO is a physical device of the host's, which a driver of the guest serves. It is there since the guest has started.
	typeVFIO = "vfio-pci-gk"
)

// Disks finds what the host has plugged in.
type Disks interface {
	// Find waits for the disk at a PCI address.
	Find(ctx context.Context, address string) (disk.Disk, error)
	// FindPassed waits for a passed-through device and returns its disks by name, none for one that has no disks.
	FindPassed(ctx context.Context, address string) (map[string]disk.Disk, error)
}

// planDevices checks the devices of a request. Each needs its place in the specification, and the other way round: package spec
// refuses a block device that is not among them.
func (p *plan) planDevices(req *agentpb.CreateContainerRequest) error {
	if len(req.GetDevices()) > spec.MaxDevices {
		return refuse(req, "%d devices: at most %d are allowed", len(req.GetDevices()), spec.MaxDevices)
	}
	for _, d := range req.GetDevices() {
		if d.GetType() == typeVFIO {
			if err := p.planFunctions(req, d); err != nil {
				return err
			}
			continue
		}
		if d.GetType() != typeBlock {
			return refuse(req, "device type %.32q of %.100q: only virtio disks and passed-through devices are offered", d.GetType(), d.GetContainerPath())
		}
		if err := disk.CheckAddress(d.GetId()); err != nil {
			return fmt.Errorf("container %s: device %.100q: %w", req.GetContainerId(), d.GetContainerPath(), err)
		}
		if len(d.GetOptions()) > 0 {
			return refuse(req, "device %.100q has options", d.GetContainerPath())
		}
		named := func(other plannedDevice) bool { return other.path == d.GetContainerPath() }
		if slices.ContainsFunc(p.devices, named) {
			return refuse(req, "device %.100q is named twice", d.GetContainerPath())
		}
		p.devices = append(p.devices, plannedDevice{path: d.GetContainerPath(), address: d.GetId()})
	}
	return nil
}

type plannedDevice struct{ path, address string }

// paths are where the container sees its devices.
func (p *plan) devicePaths() map[string]bool {
	paths := map[string]bool{}
	for _, d := range p.devices {
		paths[d.path] = true
	}
	return paths
}

// findDevices waits for the devices and puts their numbers into the specification.
func (m *Manager) findDevices(ctx context.Context, p *plan) error {
	for _, d := range p.devices {
		found, err := m.Disks.Find(ctx, d.address)
		if err != nil {
			return fmt.Errorf("container %s: device %s: %w", p.id, d.path, err)
		}
		if err := spec.SetDisk(p.spec, d.path, found.Major, found.Minor, found.ReadOnly); err != nil {
			return fmt.Errorf("container %s: %w", p.id, err)
		}
	}
	return m.findPassed(ctx, p)
}
