package container

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/coffer-project/coffer/guestpull/container/spec"
	"github.com/coffer-project/coffer/guestpull/disk"
	agentpb "github.com/coffer-project/coffer/proto/agent"
)

// planFunctions reads where the functions of a passed-through device are: HOST=GUEST each, as Kata's runtime writes it. The host's
// address has no meaning here.
func (p *plan) planFunctions(req *agentpb.CreateContainerRequest, d *agentpb.Device) error {
	if len(d.GetOptions()) > spec.MaxDevices {
		return refuse(req, "device %.100q has %d functions: at most %d are allowed", d.GetContainerPath(), len(d.GetOptions()), spec.MaxDevices)
	}
	for _, option := range d.GetOptions() {
		_, address, ok := strings.Cut(option, "=")
		if !ok {
			return refuse(req, "device %.100q: %.100q does not say where in the guest it is", d.GetContainerPath(), option)
		}
		if err := disk.CheckPassed(address); err != nil {
			return fmt.Errorf("container %s: device %.100q: %w", req.GetContainerId(), d.GetContainerPath(), err)
		}
		p.functions = append(p.functions, address)
	}
	return nil
}

// findPassed waits for the passed-through devices. The container gets the disks that are among them under the guest's own names; what
// else it gets of a device, its annotations say.
func (m *Manager) findPassed(ctx context.Context, p *plan) error {
	for _, address := range p.functions {
		disks, err := m.Disks.FindPassed(ctx, address)
		if err != nil {
			return fmt.Errorf("container %s: passed-through device: %w", p.id, err)
		}
		for _, name := range slices.Sorted(maps.Keys(disks)) {
			found := disks[name]
			if err := spec.AddDisk(p.spec, "/dev/"+name, found.Major, found.Minor, found.ReadOnly); err != nil {
				return fmt.Errorf("container %s: passed-through device: %w", p.id, err)
			}
			p.disks = append(p.disks, name)
		}
	}
	return nil
}
