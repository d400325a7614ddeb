package vfio

import (
	"fmt"
	"path"
	"strconv"
	"strings"
)

// Nodes are the VFIO nodes by which the pod was given its devices, in the order of the devices: of a card with several functions, that
// of the one that was asked for.
func (c *Claim) Nodes() (nodes []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	seen := map[string]bool{}
	for _, h := range c.held {
		d := h.device
		node := c.manager.node(d)
		if d.wanted && !seen[node] {
			seen[node] = true
			nodes = append(nodes, node)
		}
	}
	return nodes
}

func (m *Manager) node(d Device) string {
	if m.ownNode(d) {
		return "/dev/vfio/devices/" + d.Char
	}
	return fmt.Sprintf("/dev/vfio/%d", d.Group)
}

// Behind are the claim's devices that a node stands for: one, or those of a group; none for a node of other devices.
func (c *Claim) Behind(node string) (devices []Device) {
	c.mu.Lock()
	defer c.mu.Unlock()
	base := path.Base(node)
	for _, h := range c.held {
		d := h.device
		if strings.HasPrefix(base, "vfio") && d.Char == base || strconv.Itoa(d.Group) == base {
			devices = append(devices, d)
		}
	}
	return devices
}

// GPU is the number that a GPU of the claim has in the guest, by the order of the buses there; false for all other devices.
func (c *Claim) GPU(address string) (index int, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range c.held {
		if !h.device.IsGPU() {
			continue
		}
		if h.device.Address == address {
			return index, true
		}
		index++
	}
	return 0, false
}
