package vfiotest

import "fmt"

// Flags of registers as the kernel shows them: of 64-bit prefetchable memory, other 64-bit memory, 32-bit memory, and ports.
const (
	wide64  = 0x14220c
	plain64 = 0x140204
	plain32 = 0x40200
	ports   = 0x40101
)

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
)

const (
	classGPU    = 0x030200
	classVGA    = 0x030000
	classAudio  = 0x040300
	classSwitch = 0x068000
	classIB     = 0x020700
	classNIC    = 0x020000
	classNVMe   = 0x010802
	classBridge = 0x060400
)

// The devices' ids and groups are those of the boards. The sizes of registers are what the boards' memory needs, to the next power of
// two; a real board may have smaller ones besides.
func gpu(address string, id uint16, memory uint64, numa, group int) Function {
	return Function{
		Address: address, Vendor: 0x10de, ID: id, Class: classGPU, NUMANode: numa, Group: group, Driver: "nvidia", Bound: "vfio-pci",
		Resources: [6]Resource{{16 * mib, wide64}, {}, {memory, wide64}, {}, {32 * mib, wide64}},
	}
}

// NVMe is a disk on its own driver.
func NVMe(address string, group int) Function {
	return Function{
		Address: address, Vendor: 0x1b36, ID: 0x0010, Class: classNVMe, NUMANode: -1, Group: group, Driver: "nvme", Bound: "nvme",
		Resources: [6]Resource{{16 * kib, plain64}},
	}
}

// NIC is a virtual function of a network card, bound to VFIO.
func NIC(address string, group int) Function {
	return Function{
		Address: address, Vendor: 0x15b3, ID: 0x101e, Class: classNIC, Group: group, Driver: "mlx5_core", Bound: "vfio-pci",
		Resources: [6]Resource{{1 * mib, wide64}}, VPD: "NVIDIA ConnectX-6 Dx",
	}
}

// Bridge is a PCI bridge, which belongs to a group without being anybody's device.
func Bridge(address string, group int) Function {
	return Function{Address: address, Vendor: 0x8086, ID: 0x347a, Class: classBridge, Group: group, Driver: "pcieport", Bound: "pcieport", NoReset: true}
}

// SharedSlots are two disks behind one bridge that does not keep them apart.
func SharedSlots() []Function {
	return []Function{Bridge("0000:00:1c.0", 7), NVMe("0000:02:00.0", 7), NVMe("0000:03:00.0", 7)}
}

// HGXH100 is a board of eight H100 with 80 GB and four NVSwitches.
func HGXH100() []Function { return hopperBoard(0x2330, 128*gib) }

// HGXH200 is the same board with H200 of 141 GB.
func HGXH200() []Function { return hopperBoard(0x2335, 256*gib) }

func hopperBoard(id uint16, memory uint64) (board []Function) {
	for i, bus := range []int{0x1b, 0x43, 0x52, 0x61, 0x9d, 0xc3, 0xd1, 0xdf} {
		board = append(board, gpu(fmt.Sprintf("0000:%02x:00.0", bus), id, memory, i/4, 40+i))
	}
	for i := range 4 {
		board = append(board, Function{
			Address: fmt.Sprintf("0000:%02x:00.0", 0x05+i), Vendor: 0x10de, ID: 0x22a3, Class: classSwitch, Group: 60 + i, Driver: "nvidia-nvswitch",
			Bound: "vfio-pci", Resources: [6]Resource{{32 * mib, plain64}},
		})
	}
	return board
}

// HGXB200 is a board of eight B200 with 180 GB, whose NVSwitches are managed by functions of ConnectX cards.
func HGXB200() (board []Function) {
	for i, bus := range []int{0x1b, 0x43, 0x52, 0x61, 0x9d, 0xc3, 0xd1, 0xdf} {
		board = append(board, gpu(fmt.Sprintf("0000:%02x:00.0", bus), 0x2901, 256*gib, i/4, 40+i))
	}
	for i := range 4 {
		board = append(board, Function{
			Address: fmt.Sprintf("0000:05:00.%d", i), Vendor: 0x15b3, ID: 0x1021, Class: classIB, Group: 60 + i, Driver: "mlx5_core", Bound: "vfio-pci",
			Resources: [6]Resource{{32 * mib, wide64}}, VPD: "\x82\x0cNVLink cards\x90SW_MNG",
		})
	}
	return board
}

// H200 is a machine with one H200.
func H200() []Function { return []Function{gpu("0000:41:00.0", 0x2335, 256*gib, 0, 33)} }

// RTXPro6000 is a machine with one RTX Pro 6000, whose sound function is in its group, as is the bridge above.
func RTXPro6000() []Function {
	card := Function{
		Address: "0000:81:00.0", Vendor: 0x10de, ID: 0x2bb5, Class: classVGA, NUMANode: 1, Group: 21, Driver: "nvidia", Bound: "vfio-pci",
		Resources: [6]Resource{{64 * mib, plain32}, {128 * gib, wide64}, {}, {32 * mib, wide64}, {}, {128, ports}},
	}
	sound := Function{
		Address: "0000:81:00.1", Vendor: 0x10de, ID: 0x22e8, Class: classAudio, NUMANode: 1, Group: 21, Driver: "snd_hda_intel", Bound: "vfio-pci",
		Resources: [6]Resource{{16 * kib, plain32}},
	}
	return []Function{Bridge("0000:80:01.0", 21), card, sound}
}
