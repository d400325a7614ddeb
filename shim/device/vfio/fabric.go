package vfio

import (
	"bytes"
	"fmt"
	"io"
	"os"

	"github.com/containerd/errdefs"
)

// A whole HGX board: eight GPUs, and either four NVSwitches or, from Blackwell on, four functions of ConnectX cards by which the
// switches are managed.
const (
	boardGPUs     = 8
	boardSwitches = 4
	boardBridges  = 4
)

// hopper are the PCI device ids of GH100 (H100, H200, H800, H20).
const (
	hopperFirst = 0x2300
	hopperLast  = 0x237f
)

// switchMarker is in the vital product data of a ConnectX function that manages NVSwitches, and maxVPD is how much of that is read.
var switchMarker = []byte("SW_MNG")

const maxVPD = 32 << 10

// checkFabric refuses what a guest could not make work, or not confidentially, before anything is started.
//
// NVSwitches and their management functions are of use to a guest that has the whole board: with some of them the guest's fabric
// manager fails. A guest without GPUs may have them all, to manage the fabric for others. Confidential guests with Hopper GPUs get
// exactly one, or a whole board (NVIDIA calls that protected PCIe): between GPUs, Hopper does not encrypt NVLink, so that the switches
// must be in the guest.
func checkFabric(h Host, devices []Device, confidential bool) error {
	gpus, switches, bridges, old := 0, 0, 0, 0
	for _, d := range devices {
		switch {
		case d.IsGPU():
			gpus++
			if d.ID >= hopperFirst && d.ID <= hopperLast {
				old++
			}
		case d.IsNVSwitch():
			switches++
		case d.Vendor == vendorMellanox && h.managesSwitches(d.Address):
			bridges++
		}
	}
	whole := gpus == boardGPUs || gpus == 0
	switch {
	case switches == 0 && bridges == 0 && confidential && old > 1:
		return fmt.Errorf("the pod asks for %d Hopper GPUs, and a confidential VM can have one, or all %d of a board with its %d NVSwitches "+
			"(the pod must ask for those too, nvidia.com/nvswitch): %w", gpus, boardGPUs, boardSwitches, errdefs.ErrFailedPrecondition)
	case switches == 0 && bridges == 0:
		return nil
	case switches == boardSwitches && bridges == 0 && whole, switches == 0 && bridges == boardBridges && whole:
		return nil
	}
	return fmt.Errorf("the pod asks for %d GPUs, %d NVSwitches and %d functions that manage switches, which make no whole board: %d GPUs with %d "+
		"NVSwitches, or with %d such functions, or GPUs alone: %w",
		gpus, switches, bridges, boardGPUs, boardSwitches, boardBridges, errdefs.ErrFailedPrecondition)
}

// managesSwitches tells a ConnectX function that manages NVSwitches. One whose data cannot be read is a network card.
func (h Host) managesSwitches(address string) bool {
	file, err := os.Open(h.pci(address, "vpd"))
	if err != nil {
		return false
	}
	defer file.Close()
	// What was read before an error counts: the kernel ends with one where a card's data is shorter than it says.
	data, _ := io.ReadAll(io.LimitReader(file, maxVPD))
	return bytes.Contains(data, switchMarker)
}
