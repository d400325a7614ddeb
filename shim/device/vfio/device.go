package vfio

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/shim/vm"
)

// Device is a PCI function of the host, as sysfs shows it (Documentation/ABI/testing/sysfs-bus-pci of the kernel).
type Device struct {
	// Address is its place on the host, such as 0000:41:00.0.
	Address string
	// Vendor and ID are its numbers, Class its 24-bit class code.
	Vendor, ID uint16
	Class      uint32
	// NUMANode is the memory node next to it, -1 when the host does not know.
	NUMANode int
	BARs     []vm.BAR
	// Driver is bound to it; empty for none.
	Driver string
	// Group is its IOMMU group.
	Group int
	// Char is the name of its own node below /dev/vfio/devices, such as vfio12. It is empty when the device is not bound to
	// VFIO, and on kernels that know groups only.
	Char string
	// wanted is set when the pod's request means this function, and not another that comes with it.
	wanted bool
	// legacy is set when the request named the group's node.
	legacy bool
	// trusted is set when the node's CDI specifications named it, which is what allows it to be bound.
	trusted bool
}

// PCI classes, of which the last byte is the programming interface.
const (
	classHostBridge  = 0x0600
	classPCIBridge   = 0x0604
	classOtherBridge = 0x0680 // NVSwitches call themselves so
	classDisplay     = 0x03
)

const (
	vendorNVIDIA   = 0x10de
	vendorMellanox = 0x15b3
)

// IsGPU tells an NVIDIA GPU, in the way in which Kata tells it.
func (d Device) IsGPU() bool { return d.Vendor == vendorNVIDIA && d.Class>>16 == classDisplay }

// IsNVSwitch tells an NVSwitch that is a PCI device of its own (Hopper and before).
func (d Device) IsNVSwitch() bool { return d.Vendor == vendorNVIDIA && d.Class>>8 == classOtherBridge }

// isBridge tells what belongs to a group without being anybody's device.
func (d Device) isBridge() bool { return d.Class>>8 == classPCIBridge || d.Class>>8 == classHostBridge }

// slot is the address without the function.
func (d Device) slot() string { slot, _, _ := strings.Cut(d.Address, "."); return slot }

// String is how errors name the device.
func (d Device) String() string {
	driver := d.Driver
	if driver == "" {
		driver = "no driver"
	}
	return fmt.Sprintf("%s [%04x:%04x, class %06x, %s]", d.Address, d.Vendor, d.ID, d.Class, driver)
}

// Device reads what is at an address. It fails with errdefs.ErrInvalidArgument for what is no address,
// errdefs.ErrNotFound when nothing is there, and errdefs.ErrFailedPrecondition for a device without an IOMMU.
func (h Host) Device(address string) (Device, error) {
	if !addressPattern.MatchString(address) {
		return Device{}, fmt.Errorf("%.64q is no PCI address such as 0000:41:00.0: %w", address, errdefs.ErrInvalidArgument)
	}
	d := Device{Address: address, NUMANode: -1}
	if err := d.read(h); err != nil {
		return Device{}, fmt.Errorf("read PCI device %s: %w", address, notFound(err))
	}
	return d, nil
}

func (d *Device) read(h Host) error {
	for _, n := range []struct {
		file string
		set  func(int64)
	}{
		{"vendor", func(n int64) { d.Vendor = uint16(n) }},
		{"device", func(n int64) { d.ID = uint16(n) }},
		{"class", func(n int64) { d.Class = uint32(n) & 0xffffff }},
		{"numa_node", func(n int64) { d.NUMANode = int(n) }},
	} {
		value, err := number(h.pci(d.Address, n.file), 64)
		if err != nil {
			return err
		}
		n.set(value)
	}
	var err error
	if d.Driver, err = linkName(h.pci(d.Address, "driver")); err != nil {
		return err
	}
	group, err := linkName(h.pci(d.Address, "iommu_group"))
	if err != nil {
		return err
	}
	if d.Group, err = strconv.Atoi(group); err != nil {
		return fmt.Errorf("it has no IOMMU group: switch the IOMMU on in the machine's firmware, and on the host kernel's command line "+
			"(intel_iommu=on or amd_iommu=on): %w", errdefs.ErrFailedPrecondition)
	}
	if d.Char, err = h.char(d.Address); err != nil {
		return err
	}
	text, err := os.ReadFile(h.pci(d.Address, "resource"))
	if err != nil {
		return err
	}
	d.BARs, err = parseBARs(string(text))
	return err
}

// char is the name of the device's own VFIO node.
func (h Host) char(address string) (string, error) {
	entries, err := os.ReadDir(h.pci(address, "vfio-dev"))
	if os.IsNotExist(err) || err == nil && len(entries) == 0 {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return entries[0].Name(), nil
}

// Flags of a line of the file resource, from the kernel's linux/ioport.h.
const (
	resourceIO       = 0x00000100
	resourceMemory   = 0x00000200
	resourcePrefetch = 0x00002000
	resourceWide     = 0x00100000
)

// maxBARs is how many base address registers a function has. The lines after them are its ROM and its virtual functions'.
const maxBARs = 6

// parseBARs reads the file resource: a line of start, end and flags for each register.
func parseBARs(text string) ([]vm.BAR, error) {
	var bars []vm.BAR
	index := 0
	for line := range strings.Lines(text) {
		if index++; index > maxBARs {
			break
		}
		var values [3]uint64
		words := strings.Fields(line)
		if len(words) != len(values) {
			return nil, fmt.Errorf("resource %.100q is not start, end and flags", line)
		}
		for i, word := range words {
			var err error
			if values[i], err = strconv.ParseUint(word, 0, 64); err != nil {
				return nil, fmt.Errorf("resource %.100q: %w", line, err)
			}
		}
		start, end, flags := values[0], values[1], values[2]
		if flags&(resourceIO|resourceMemory) == 0 {
			continue // not in use, or the upper half of the register before it
		}
		size := end - start + 1
		if end < start || size == 0 || size&(size-1) != 0 {
			return nil, fmt.Errorf("resource %.100q has a size of %d bytes", line, size)
		}
		bars = append(bars, vm.BAR{
			Bytes: size, IO: flags&resourceIO != 0, Prefetchable: flags&resourcePrefetch != 0, Wide: flags&resourceWide != 0,
		})
	}
	return bars, nil
}
