package vfio

import (
	"fmt"
	"os"
	"strings"

	"github.com/containerd/errdefs"
)

// vfioDriver is the kernel's driver that hands devices out.
const vfioDriver = "vfio-pci"

// noOverride is what the kernel shows where no driver is asked for by name, and noOverrideValue what asks for none.
const (
	noOverride      = "(null)"
	noOverrideValue = "\n"
)

// boundToVFIO also holds for the variants of vfio-pci that come with a vendor's driver, such as nvgrace-gpu-vfio-pci and
// mlx5_vfio_pci.
func boundToVFIO(driver string) bool {
	return strings.HasSuffix(strings.ReplaceAll(driver, "_", "-"), vfioDriver)
}

// override reads which driver is asked for by name; empty for none.
func (h Host) override(address string) (string, error) {
	raw, err := os.ReadFile(h.pci(address, "driver_override"))
	if err != nil {
		return "", err
	}
	if text := strings.TrimSpace(string(raw)); text != noOverride {
		return text, nil
	}
	return "", nil
}

// bind takes a device from its driver and gives it to vfio-pci.
func (h Host) bind(address string) error {
	if !exists(h.sysfs("bus", "pci", "drivers", vfioDriver)) {
		return fmt.Errorf("bind %s: the host has no driver %s, load it (modprobe %s): %w", address, vfioDriver, vfioDriver, errdefs.ErrFailedPrecondition)
	}
	if err := h.rebind(address, vfioDriver, vfioDriver); err != nil {
		return fmt.Errorf("bind %s to %s: %w", address, vfioDriver, err)
	}
	return nil
}

// rebind puts a device under driver, none when it is empty, and leaves override in the file that names one.
func (h Host) rebind(address, driver, override string) error {
	if override == "" {
		override = noOverrideValue
	}
	if err := h.write(h.pci(address, "driver_override"), override); err != nil {
		return err
	}
	now, err := linkName(h.pci(address, "driver"))
	if err != nil || now == driver {
		return err
	}
	if now != "" {
		if err := h.write(h.pci(address, "driver", "unbind"), address); err != nil {
			return err
		}
	}
	if driver == "" {
		return nil
	}
	if err := h.write(h.sysfs("bus", "pci", "drivers_probe"), address); err != nil {
		return err
	}
	if now, err = linkName(h.pci(address, "driver")); err != nil {
		return err
	}
	if now != driver {
		return fmt.Errorf("the driver is %q and not %q (see the host's kernel log): %w", now, driver, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// reset clears what a VM has left in a device. One that offers no reset is reset by vfio-pci, as far as it can be, whenever
// it is closed.
func (h Host) reset(address string) error {
	path := h.pci(address, "reset")
	if !exists(path) {
		return nil
	}
	if err := h.write(path, "1"); err != nil {
		return fmt.Errorf("reset %s: %w", address, err)
	}
	return nil
}
