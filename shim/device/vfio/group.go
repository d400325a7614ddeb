package vfio

import (
	"cmp"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/lazyregexp"
)

// Device nodes of VFIO: of a group, and of one device with iommufd. The nodes that belong to no device open the others.
var (
	nodePattern = lazyregexp.New(`^/dev/vfio/(devices/vfio)?(0|[1-9][0-9]{0,8})$`)
	commonNodes = []string{"/dev/vfio/vfio", "/dev/iommu"}
)

// IsNode tells whether path is a VFIO node that stands for devices.
func IsNode(path string) bool { return nodePattern.MatchString(path) }

// Node finds the devices behind a VFIO node: one behind a node of its own, the endpoints of the group behind a group's. The node
// need not be there yet. It fails with errdefs.ErrInvalidArgument for another path, and with errdefs.ErrNotFound when the
// kernel knows no such device or group.
func (h Host) Node(node string) ([]Device, error) {
	match := nodePattern.FindStringSubmatch(node)
	if match == nil {
		return nil, fmt.Errorf("%.100q is no VFIO device node: %w", node, errdefs.ErrInvalidArgument)
	}
	if match[1] == "" {
		group, err := strconv.Atoi(match[2])
		if err != nil {
			return nil, err
		}
		return h.groupNode(node, group)
	}
	address, err := linkName(h.sysfs("class", "vfio-dev", path.Base(node), "device"))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", node, err)
	}
	if address == "" {
		return nil, fmt.Errorf("%s: the kernel knows no such VFIO device: %w", node, errdefs.ErrNotFound)
	}
	d, err := h.Device(address)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", node, err)
	}
	d.wanted = true
	return []Device{d}, nil
}

func (h Host) groupNode(node string, group int) ([]Device, error) {
	members, err := h.members(group)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", node, err)
	}
	for i := range members {
		members[i].wanted, members[i].legacy = true, true
	}
	if len(members) == 0 {
		return nil, fmt.Errorf("%s: IOMMU group %d has no devices but bridges: %w", node, group, errdefs.ErrNotFound)
	}
	return members, nil
}

// members are the devices of a group, less bridges, by address.
func (h Host) members(group int) ([]Device, error) {
	entries, err := os.ReadDir(h.sysfs("kernel", "iommu_groups", strconv.Itoa(group), "devices"))
	if err != nil {
		return nil, fmt.Errorf("read IOMMU group %d: %w", group, notFound(err))
	}
	var members []Device
	for _, entry := range entries {
		d, err := h.Device(entry.Name())
		if err != nil {
			return nil, err
		}
		if !d.isBridge() {
			members = append(members, d)
		}
	}
	return members, nil
}

// whole adds the other functions of each device, which its group ties to it, sorts by address, and checks that each group has no
// devices but the pod's. A group node that several devices share is refused as well: whoever named it may not know that. It
// fails with errdefs.ErrFailedPrecondition, naming all members.
func (h Host) whole(devices []Device) ([]Device, error) {
	claimed := map[string]Device{}
	groups := map[int]bool{}
	for _, d := range devices {
		if old, ok := claimed[d.Address]; ok {
			d.trusted = d.trusted || old.trusted
		}
		claimed[d.Address] = d
		groups[d.Group] = true
	}
	for group := range groups {
		members, err := h.members(group)
		if err != nil {
			return nil, err
		}
		if err := h.join(claimed, group, members); err != nil {
			return nil, err
		}
	}
	all := make([]Device, 0, len(claimed))
	for _, d := range claimed {
		all = append(all, d)
	}
	slices.SortFunc(all, func(a, b Device) int { return compareAddresses(a.Address, b.Address) })
	return all, nil
}

// join adds a group's functions to what is claimed.
func (h Host) join(claimed map[string]Device, group int, members []Device) error {
	slots := map[string]Device{}
	legacy := false
	for _, m := range members {
		if d, ok := claimed[m.Address]; ok {
			slots[m.slot()] = d
			legacy = legacy || d.legacy
		}
	}
	for _, m := range members {
		if _, ok := claimed[m.Address]; ok {
			continue
		}
		first, ok := slots[m.slot()]
		if !ok {
			return shared(group, members)
		}
		m.trusted, m.legacy = first.trusted, first.legacy
		claimed[m.Address] = m
	}
	if legacy && len(slots) > 1 {
		return shared(group, members)
	}
	return nil
}

func shared(group int, members []Device) error {
	var names []string
	for _, m := range members {
		names = append(names, m.String())
	}
	return fmt.Errorf("IOMMU group %d is shared by several devices, which could reach each other past the IOMMU: %s; "+
		"give the device a slot (or a bridge with ACS) of its own: %w", group, strings.Join(names, ", "), errdefs.ErrFailedPrecondition)
}

// compareAddresses orders addresses as numbers: domains have no fixed width.
func compareAddresses(a, b string) int {
	return cmp.Or(cmp.Compare(strings.Index(a, ":"), strings.Index(b, ":")), cmp.Compare(a, b))
}
