package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/coffer-project/coffer/integration/harness"
)

const pciDevices = "/sys/bus/pci/devices"

var channel = regexp.MustCompile(`^(nvme[0-9]+)c[0-9]+(n[0-9]+)$`)

// nvme is an NVMe disk of this machine, as its driver knows it.
type nvme struct {
	// address is the device's on the PCI bus, block the disk's device node.
	address, block string
}

// findNVMe waits for the driver to show the disk with a serial number.
func findNVMe(ctx context.Context, serial string) (nvme, error) {
	var found nvme
	err := harness.Eventually(ctx, func(context.Context) error {
		controllers, err := filepath.Glob("/sys/class/nvme/nvme*")
		if err != nil {
			return err
		}
		for _, dir := range controllers {
			if read(filepath.Join(dir, "serial")) != serial {
				continue
			}
			blocks, err := filepath.Glob(filepath.Join(dir, "nvme*n*"))
			if err != nil || len(blocks) != 1 {
				return fmt.Errorf("NVMe controller %s has %d disks: %w", dir, len(blocks), err)
			}
			// nvme0c0n1 is a way to nvme0n1, which alone has a node.
			name := channel.ReplaceAllString(filepath.Base(blocks[0]), "$1$2")
			found = nvme{address: read(filepath.Join(dir, "address")), block: filepath.Join("/dev", name)}
			return nil
		}
		return fmt.Errorf("no NVMe disk has serial number %s", serial)
	})
	return found, err
}

// driver is what drives a PCI device; empty: nothing does.
func driver(address string) string {
	target, err := os.Readlink(filepath.Join(pciDevices, address, "driver"))
	if err != nil {
		return ""
	}
	return filepath.Base(target)
}

// group is a PCI device's IOMMU group.
func group(address string) (string, error) {
	target, err := os.Readlink(filepath.Join(pciDevices, address, "iommu_group"))
	if err != nil {
		return "", fmt.Errorf("device %s has no IOMMU group: %w", address, err)
	}
	return filepath.Base(target), nil
}

// read is a file's first line; empty when there is none.
func read(path string) string {
	text, _ := os.ReadFile(path)
	line, _, _ := strings.Cut(string(text), "\n")
	return strings.TrimSpace(line)
}
