package gpu

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
)

// Mode is what the devices of a guest are for together.
type Mode string

// The modes, after NVRC.
const (
	// ModeNone: no NVIDIA device.
	ModeNone Mode = "none"
	// ModeGPU: GPUs without NVLink between them that anybody must manage.
	ModeGPU Mode = "gpu"
	// ModeNVL4 is a whole HGX H100, H200 or H800 board: 8 GPUs and 4 NVSwitches, which the fabric manager sets up.
	ModeNVL4 Mode = "nvl4"
	// ModeNVL5 is a whole HGX B200 or B300 board: 8 GPUs and the 4 functions of network cards that lead to its NVSwitches.
	ModeNVL5 Mode = "nvl5"
	// ModeServiceNVL4 and ModeServiceNVL5 are guests that manage the NVLinks of GPUs in other guests.
	ModeServiceNVL4 Mode = "service-nvl4"
	ModeServiceNVL5 Mode = "service-nvl5"
)

// Topology is what of NVIDIA's is on the guest's PCI buses.
type Topology struct {
	Mode Mode
	// GPUs, Switches and Bridges are numbers of devices. Bridges are functions of Mellanox cards that say in their product data that
	// they manage switches.
	GPUs, Switches, Bridges int
}

// PCI identifiers as sysfs has them.
const (
	vendorNVIDIA   = "0x10de"
	vendorMellanox = "0x15b3"
	classDisplay   = "0x03"
	classBridge    = "0x0680"
)

// bridgeMark is what the product data of a bridge function holds.
const bridgeMark = "SW_MNG"

// maxProductData bounds a function's product data, in bytes: its format can address no more.
const maxProductData = 32 << 10

// Detect counts the devices in the folder of all PCI devices, /sys/bus/pci/devices, and tells what they are for together. Numbers that
// make no known machine are errdefs.ErrFailedPrecondition: to guess could leave NVLinks open to other guests.
func Detect(devices string) (Topology, error) {
	entries, err := os.ReadDir(devices)
	if errors.Is(err, os.ErrNotExist) {
		return Topology{Mode: ModeNone}, nil // a machine without PCI
	}
	if err != nil {
		return Topology{}, fmt.Errorf("list PCI devices: %w", err)
	}
	var t Topology
	for _, entry := range entries {
		if err := t.count(filepath.Join(devices, entry.Name())); err != nil {
			return Topology{}, fmt.Errorf("PCI device %s: %w", entry.Name(), err)
		}
	}
	t.Mode, err = t.mode()
	return t, err
}

// count looks at one device.
func (t *Topology) count(device string) error {
	vendor, err := attribute(device, "vendor")
	if err != nil {
		return err
	}
	switch vendor {
	case vendorNVIDIA:
		class, err := attribute(device, "class")
		if err != nil {
			return err
		}
		switch {
		case strings.HasPrefix(class, classDisplay):
			t.GPUs++
		case strings.HasPrefix(class, classBridge):
			t.Switches++
		}
	case vendorMellanox:
		if managesSwitches(filepath.Join(device, "vpd")) {
			t.Bridges++
		}
	}
	return nil
}

func attribute(device, name string) (string, error) {
	text, err := os.ReadFile(filepath.Join(device, name))
	return strings.TrimSpace(string(text)), err
}

// managesSwitches looks into a function's product data. One that cannot be read is not counted, so that a card of another kind does
// not spoil the count; if it was needed, the numbers will not fit.
func managesSwitches(productData string) bool {
	f, err := os.Open(productData)
	if err != nil {
		return false
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxProductData))
	return err == nil && bytes.Contains(data, []byte(bridgeMark))
}

func (t *Topology) mode() (Mode, error) {
	type numbers struct{ gpus, switches, bridges int }
	switch n := (numbers{t.GPUs, t.Switches, t.Bridges}); {
	case n == numbers{}:
		return ModeNone, nil
	case n.switches == 0 && n.bridges == 0:
		return ModeGPU, nil
	case n == numbers{8, 4, 0}:
		return ModeNVL4, nil
	case n == numbers{8, 0, 4}:
		return ModeNVL5, nil
	case n == numbers{0, 4, 0}:
		return ModeServiceNVL4, nil
	case n == numbers{0, 0, 4}:
		return ModeServiceNVL5, nil
	}
	return "", fmt.Errorf("%d GPUs, %d NVSwitches and %d NVLink bridges make no machine that this guest knows "+
		"(GPUs alone; 8 GPUs and 4 switches; 8 GPUs and 4 bridges; 4 switches; 4 bridges): plug in whole boards: %w",
		t.GPUs, t.Switches, t.Bridges, errdefs.ErrFailedPrecondition)
}
