package qemu

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/lazyregexp"
	"github.com/coffer-project/coffer/shim/vm"
)

var hostAddressPattern = lazyregexp.New(`^[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]$`)

// Widths of physical addresses: of a CPU model that does not say otherwise, and the most that QEMU emulates.
const (
	modelAddressBits    = 40
	emulatedAddressBits = 40
)

// checkPCI returns the faults of the form of config's physical devices.
func checkPCI(devices []vm.PCIDevice, need func(ok bool, format string, args ...any)) {
	need(len(devices) <= maxPCIDevices, "%d physical devices, more than %d", len(devices), maxPCIDevices)
	seen := map[string]bool{}
	for _, d := range devices {
		need(hostAddressPattern.MatchString(d.Address), "address %q of a physical device", d.Address)
		need(!seen[d.Address], "physical device %s is there twice", d.Address)
		seen[d.Address] = true
		for _, bar := range d.BARs {
			need(bar.Bytes > 0 && bar.Bytes&(bar.Bytes-1) == 0 && bar.Bytes <= maxFirmwareWindow, "a window of %d bytes of device %s", bar.Bytes, d.Address)
		}
	}
}

// checkRoom refuses a machine in which the memory of its physical devices has no place. hostBits is how wide the host's physical
// addresses are, 0 when it does not tell.
func (m machine) checkRoom(hostBits int) error {
	if len(m.pci) == 0 {
		return nil
	}
	window := wideWindow(m.pci)
	if window > maxFirmwareWindow {
		return fmt.Errorf("the devices have %d GiB of memory of their own, and firmware can place %d GiB: %w",
			window/gib, uint64(maxFirmwareWindow)/gib, errdefs.ErrFailedPrecondition)
	}
	limit := hostBits
	if m.accelerator == TCG {
		limit = emulatedAddressBits
	}
	if need := addressBits(m.memoryMiB, window); limit > 0 && need > limit {
		return fmt.Errorf("%d MiB of memory and %d GiB of the devices' own need physical addresses of %d bits, and a machine under %s has %d: %w",
			m.memoryMiB, window/gib, need, m.accelerator, limit, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// wideModel gives a CPU model the host's physical addresses where its own are too narrow for the devices.
func (m machine) wideModel(model string) string {
	if len(m.pci) == 0 || m.accelerator != KVM || strings.Contains(model, "phys-bits") || addressBits(m.memoryMiB, wideWindow(m.pci)) <= modelAddressBits {
		return model
	}
	return model + ",host-phys-bits=on"
}

var addressSizes = regexp.MustCompile(`(?m)^address sizes\s*:\s*([0-9]+) bits physical`)

// hostAddressBits reads how wide the host's physical addresses are; 0 when it does not tell. Where the host encrypts its memory, the
// bits that this takes are not counted.
func hostAddressBits() int {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return 0
	}
	return parseAddressBits(string(text))
}

func parseAddressBits(cpuinfo string) int {
	match := addressSizes.FindStringSubmatch(cpuinfo)
	if match == nil {
		return 0
	}
	n, err := strconv.Atoi(match[1])
	if err != nil {
		return 0
	}
	return n
}

// PCIPath implements vm.Instance.
func (i *Instance) PCIPath(hostAddress string) (string, error) {
	for n, d := range i.config.PCIDevices {
		if d.Address == hostAddress {
			return pciPath(n), nil
		}
	}
	return "", fmt.Errorf("vm %s has no device %s: %w", i.config.ID, hostAddress, errdefs.ErrNotFound)
}
