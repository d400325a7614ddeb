package qemu

import (
	"fmt"
	"math/bits"
	"strconv"

	"github.com/coffer-project/coffer/shim/vm"
)

// Each physical device is behind a PCIe root port of its own, as it is on a board: it finds the registers of PCIe there, and a
// window as large as its memory. Ports are functions of the slots from firstPortSlot on, eight in each, so that the guest numbers
// their buses in the order of the devices.
const (
	firstPortSlot = 0x10
	lastPortSlot  = bridgeSlot - 1
	portsPerSlot  = 8
	maxPCIDevices = (lastPortSlot - firstPortSlot + 1) * portsPerSlot
)

// iommufd is the object by which QEMU maps the guest's memory for devices. One for all devices maps, and pins, it once.
const iommufd = "iommufd0"

const (
	mib = 1 << 20
	gib = 1 << 30
	// windowStep is the granularity of a bridge's memory windows.
	windowStep = 1 * mib
	// firmwareWindow is how much room OVMF keeps for 64-bit memory of devices when nobody tells it, and maxFirmwareWindow the most
	// that it can be told (PlatformInitLib of EDK2).
	firmwareWindow    = 32 * gib
	maxFirmwareWindow = 16 << 40
)

// windows are what a root port forwards to its device, in bytes: 64-bit prefetchable memory, other memory, which has 32-bit addresses
// behind a bridge, and I/O ports.
type windows struct{ wide, memory, io uint64 }

func windowsOf(d vm.PCIDevice) (w windows) {
	for _, bar := range d.BARs {
		switch {
		case bar.IO:
			w.io = 4 << 10 // the least that a bridge can forward
		case bar.Prefetchable && bar.Wide:
			w.wide += bar.Bytes
		default:
			w.memory += bar.Bytes
		}
	}
	w.wide, w.memory = roundUp(w.wide, windowStep), roundUp(w.memory, windowStep)
	return w
}

// wideWindow is the room that the 64-bit memory of all devices needs, and that other devices of the machine keep. Firmware aligns each
// port's window to a power of two that holds it. 0 means that what firmware does by itself is enough.
func wideWindow(devices []vm.PCIDevice) uint64 {
	total := uint64(0)
	for _, d := range devices {
		if wide := windowsOf(d).wide; wide > 0 {
			total += ceilPower(wide)
		}
	}
	if total <= firmwareWindow/2 {
		return 0
	}
	return total + firmwareWindow
}

// addressBits is how wide a physical address of a machine must be in which the window of devices lies above the memory, aligned to the
// largest power of two in it. SeaBIOS leaves the upper quarter of all addresses alone.
func addressBits(memoryMiB uint32, window uint64) int {
	top := 4*gib + uint64(memoryMiB)*mib
	if window > 0 {
		top = roundUp(top, 1<<(bits.Len64(window)-1)) + window
		top += top / 3
	}
	return bits.Len64(top - 1)
}

func roundUp(n, step uint64) uint64 { return (n + step - 1) / step * step }

// ceilPower is the least power of two that is not less than n.
func ceilPower(n uint64) uint64 { return 1 << bits.Len64(n-1) }

// pciArguments are those of the physical devices.
func pciArguments(devices []vm.PCIDevice) (args []string) {
	if window := wideWindow(devices); window > 0 {
		args = append(args, "-fw_cfg", "name=opt/ovmf/X-PciMmio64Mb,string="+strconv.FormatUint(window/mib, 10))
	}
	object := false
	for _, d := range devices {
		object = object || d.OwnNode
	}
	if object {
		args = append(args, "-object", "iommufd,id="+iommufd)
	}
	for i, d := range devices {
		w := windowsOf(d)
		args = append(args,
			// Sizes of 0 keep firmware from making room for devices that are plugged in later: there are none.
			"-device", fmt.Sprintf("pcie-root-port,id=rp%d,chassis=%d,addr=%#x.%d,multifunction=on,hotplug=off,io-reserve=%d,mem-reserve=%d,pref64-reserve=%d",
				i, i+1, firstPortSlot+i/portsPerSlot, i%portsPerSlot, w.io, w.memory, w.wide),
			// Without its ROM: the firmware would run what the host has put there.
			"-device", fmt.Sprintf("vfio-pci,id=vfio%d,host=%s,bus=rp%d,x-pci-vendor-id=0x%04x,x-pci-device-id=0x%04x,rombar=0",
				i, d.Address, i, d.VendorID, d.DeviceID)+iommufdOption(d))
	}
	return args
}

func iommufdOption(d vm.PCIDevice) string {
	if d.OwnNode {
		return ",iommufd=" + iommufd
	}
	return ""
}

// pciPath is where the guest finds the device with number i, as Kata's agents write it.
func pciPath(i int) string {
	if function := i % portsPerSlot; function > 0 {
		return fmt.Sprintf("%02x.%d/00", firstPortSlot+i/portsPerSlot, function)
	}
	return fmt.Sprintf("%02x/00", firstPortSlot+i/portsPerSlot)
}
