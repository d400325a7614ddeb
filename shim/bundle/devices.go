package bundle

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	agentpb "github.com/coffer-project/coffer/proto/agent"
	ocipb "github.com/coffer-project/coffer/proto/oci"
)

// blockType is how Kata's agent protocol names a virtio disk on a PCI bus.
const blockType = "blk"

// BlockDevice is a block device of the host that the container is to have.
type BlockDevice struct {
	// Path is where the container sees it.
	Path string
	// Major and Minor are its number on the host.
	Major, Minor uint32
	// ReadOnly holds when the container may not write to it.
	ReadOnly bool
}

// Request names the device to a guest, which has it at the PCI address.
func (d BlockDevice) Request(address string) *agentpb.Device {
	return &agentpb.Device{Id: address, Type: blockType, ContainerPath: d.Path}
}

// pciType is how Kata's agent protocol names a physical device that a driver of the guest is to serve.
const pciType = "vfio-pci-gk"

// PCIDevice is a physical device that the guest has, and the container is to use.
type PCIDevice struct {
	// Node is the VFIO node of the host that stands for it, /dev/vfio/12 or /dev/vfio/devices/vfio12.
	Node string
	// Functions are where its PCI functions are.
	Functions []PCIFunction
	// Kind and Index name it in the guest's CDI specification (nvidia.com/gpu, 0); Kind is empty for one that is in none.
	Kind  string
	Index int
}

// PCIFunction is where a PCI function is: its address on the host, and the way to it in the guest.
type PCIFunction struct{ Host, Guest string }

// Request names the device to a guest. Which nodes the container gets of it is the guest's to say.
func (d PCIDevice) Request() *agentpb.Device {
	request := &agentpb.Device{Id: path.Base(d.Node), Type: pciType, ContainerPath: d.Node}
	for _, f := range d.Functions {
		request.Options = append(request.Options, f.Host+"="+f.Guest)
	}
	return request
}

// annotate tells the guest which of its CDI devices the container is to have. The host's own names mean nothing there.
func annotate(annotations map[string]string, devices []PCIDevice, d *dropped) {
	if devices == nil {
		return
	}
	for key := range annotations {
		if strings.HasPrefix(key, prefixCDI) {
			d.note("annotations["+key+"]", true)
			delete(annotations, key)
		}
	}
	for _, device := range devices {
		if device.Kind != "" {
			number := strings.TrimPrefix(path.Base(device.Node), "vfio")
			annotations[prefixCDI+"vfio"+number] = fmt.Sprintf("%s=%d", device.Kind, device.Index)
		}
	}
}

// CharDevices lists the paths of the host's character devices that the container is to have, none for one that may use every
// device.
func (b *Bundle) CharDevices() (paths []string) {
	if allowsAll(b.spec.Linux.Resources) {
		return nil
	}
	for _, d := range b.spec.Linux.Devices {
		if d.Type == "c" {
			paths = append(paths, d.Path)
		}
	}
	return paths
}

// BlockDevices lists the block devices that the container is to have. A container that may use every device of the host
// gets none: a VM exists to keep it from them, and nobody has named one. It fails with errdefs.ErrInvalidArgument for a
// path that is not clean and for one that is named twice.
func (b *Bundle) BlockDevices() ([]BlockDevice, error) {
	linux := b.spec.Linux
	if allowsAll(linux.Resources) {
		return nil, nil
	}
	var out []BlockDevice
	for _, d := range linux.Devices {
		if d.Type != "b" {
			continue
		}
		if err := checkPath("device path", d.Path); err != nil {
			return nil, err
		}
		if slices.ContainsFunc(out, func(o BlockDevice) bool { return o.Path == d.Path }) {
			return nil, fmt.Errorf("device path %s is named twice: %w", d.Path, errdefs.ErrInvalidArgument)
		}
		// The numbers of the kernel's interface: 12 bits and 20 bits.
		if d.Major < 0 || d.Major >= 1<<12 || d.Minor < 0 || d.Minor >= 1<<20 {
			return nil, fmt.Errorf("device %s has number %d:%d: %w", d.Path, d.Major, d.Minor, errdefs.ErrInvalidArgument)
		}
		out = append(out, BlockDevice{
			Path: d.Path, Major: uint32(d.Major), Minor: uint32(d.Minor),
			ReadOnly: !strings.Contains(access(linux.Resources, d), "w"),
		})
	}
	return out, nil
}

// allowsAll tells a privileged container on a runtime that hands it all devices of the host.
func allowsAll(r *specs.LinuxResources) bool {
	return r != nil && slices.ContainsFunc(r.Devices, func(rule specs.LinuxDeviceCgroup) bool {
		return rule.Allow && (rule.Type == "" || rule.Type == "a") && rule.Major == nil && rule.Minor == nil &&
			strings.Contains(rule.Access, "w")
	})
}

// access is what the last rule for exactly this device allows.
func access(r *specs.LinuxResources, d specs.LinuxDevice) string {
	allowed := ""
	if r == nil {
		return allowed
	}
	for _, rule := range r.Devices {
		if rule.Type == d.Type && rule.Major != nil && *rule.Major == d.Major && rule.Minor != nil && *rule.Minor == d.Minor {
			allowed = ""
			if rule.Allow {
				allowed = rule.Access
			}
		}
	}
	return allowed
}

// softDevices are character devices that belong to no hardware, so that a guest has its own under the same number: FUSE and
// tunnels, by what the kernel's list of devices (admin-guide/devices.txt) has fixed.
var softDevices = [][2]int64{{10, 229}, {10, 200}}

func isSoft(d specs.LinuxDevice) bool {
	return d.Type == "c" && slices.Contains(softDevices, [2]int64{d.Major, d.Minor})
}

// handDevices adds the devices that the request carries to the specification, where an agent looks their paths up and
// puts the guest's numbers in place of the host's, and those that need no hardware. All others are dropped, and so are all
// rules but theirs: which devices a guest has, and which of them are harmless, it knows itself.
func handDevices(out *ocipb.Linux, in *specs.Linux, handed []*agentpb.Device, d *dropped) {
	all := allowsAll(in.Resources)
	d.note("linux.resources.devices", all)
	others := false
	for _, device := range in.Devices {
		is := func(h *agentpb.Device) bool { return h.GetContainerPath() == device.Path }
		handedOn := !all && slices.ContainsFunc(handed, is)
		if handedOn && device.Type == "c" {
			continue // a physical device: the guest's CDI specification has its nodes
		}
		plugged := handedOn && device.Type == "b"
		if !plugged && !isSoft(device) {
			others = true
			d.note("linux.devices["+device.Path+"]", !all)
			continue
		}
		mode, allowed := uint32(0), "rwm"
		if device.FileMode != nil {
			mode = uint32(device.FileMode.Perm())
		}
		if !all {
			allowed = access(in.Resources, device)
		}
		out.Devices = append(out.Devices, &ocipb.LinuxDevice{
			Path: device.Path, Type: device.Type, Major: device.Major, Minor: device.Minor,
			FileMode: mode, UID: value(device.UID), GID: value(device.GID),
		})
		out.Resources.Devices = append(out.Resources.Devices, &ocipb.LinuxDeviceCgroup{
			Allow: true, Type: device.Type, Major: device.Major, Minor: device.Minor, Access: allowed,
		})
	}
	// A privileged container brings all devices of the host, too many to name.
	d.note("linux.devices", all && others)
}
