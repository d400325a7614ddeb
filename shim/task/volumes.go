package task

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/log"

	agentpb "github.com/coffer-project/coffer/proto/agent"
	"github.com/coffer-project/coffer/shim/bundle"
	"github.com/coffer-project/coffer/shim/device/block"
)

// unplugBudget is how long a guest may take to let go of a container's block devices. containerd waits for that long when
// it deletes a container.
const unplugBudget = 10 * time.Second

// plugVolumes makes the block devices of a container part of the VM. Also when it fails, the caller calls dropVolumes.
func (s *Service) plugVolumes(ctx context.Context, b *bundle.Bundle, c *container) ([]*agentpb.Device, error) {
	devices, err := b.BlockDevices()
	if err != nil || len(devices) == 0 {
		return nil, err
	}
	volumes, err := s.pod.Volumes()
	if err != nil {
		return nil, err
	}
	var requests []*agentpb.Device
	for _, device := range devices {
		claim := volumes.Reserve(block.Device{Major: device.Major, Minor: device.Minor, ReadOnly: device.ReadOnly})
		c.mu.Lock()
		c.volumes = append(c.volumes, claim)
		c.mu.Unlock()
		address, err := claim.Add(ctx)
		if err != nil {
			return nil, fmt.Errorf("hand %s to the guest: %w", device.Path, err)
		}
		requests = append(requests, device.Request(address))
	}
	return requests, nil
}

// dropVolumes releases the block devices of a container that is removed, or was not made. A guest that holds on to a
// device must not keep the container from being removed: the device stays in the VM until the pod ends, and is refused
// to others until then.
func (c *container) dropVolumes(ctx context.Context) {
	c.mu.Lock()
	claims := c.volumes
	c.volumes = nil
	c.mu.Unlock()
	if len(claims) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unplugBudget)
	defer cancel()
	if err := block.RemoveAll(ctx, claims); err != nil {
		log.G(ctx).WithError(err).WithField("container", c.id).Warn("guest has not let go of a block device, it stays until the pod ends")
	}
}
