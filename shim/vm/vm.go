// Package vm is the seam between the shim and a virtual machine monitor. It knows no hypervisor by name:
// drivers live in sub-packages and only shim/plugin names one.
package vm

import (
	"context"
	"net"
	"os"
	"time"
)

// Driver makes utility VMs and cleans up after them.
type Driver interface {
	// New checks config against what this machine can do and prepares the instance. Nothing runs yet. It may take some
	// seconds the first time after a boot, when a driver tries the machine out. It fails with
	// errdefs.ErrFailedPrecondition when the machine lacks something, naming the cure.
	New(ctx context.Context, config Config) (Instance, error)

	// Cleanup ends the VM whose files lie in stateDir, if it still runs, and removes what it left. It is for the
	// process that comes after a killed shim, is idempotent, and succeeds when nothing is there.
	Cleanup(ctx context.Context, stateDir string) error
}

// Instance is one utility VM. Methods are safe for concurrent use unless said otherwise.
type Instance interface {
	// Start boots the VM and returns once the machine runs; the guest may not answer yet. It is called once.
	// A failed Start leaves nothing behind; Done is closed then.
	Start(ctx context.Context) error

	// Dial opens a stream to a port that the guest listens on. It waits for the guest until ctx ends, and fails at
	// once with errdefs.ErrUnavailable, quoting the last console lines, when the VM has exited, and with
	// errdefs.ErrFailedPrecondition before Start. When ctx ends first, the error is ctx's and quotes the console, too.
	// The caller closes the stream.
	Dial(ctx context.Context, port uint32) (net.Conn, error)

	// PID is the process id of the VM monitor on the host, 0 before Start.
	PID() int

	// Done is closed when the VM has exited, for whatever reason.
	Done() <-chan struct{}

	// Exit tells how the VM ended. It is valid once Done is closed.
	Exit() Exit

	// Console returns the last lines that the guest wrote to its console, oldest first.
	Console() []string

	// ConsoleFrom returns the console's lines from number from on, counted from 0 at the VM's start, or from the oldest
	// kept one if that is later, and the number after the last. Without any it waits until the guest writes one, and
	// fails with ctx's error or, once the console is at its end, with io.EOF.
	ConsoleFrom(ctx context.Context, from uint64) (lines []string, next uint64, err error)

	// AttachDisk plugs a block device into the running VM and returns where the guest finds it: the numbers of the bridge
	// and of the slot behind it, in hexadecimal ("1e/01"). It fails with errdefs.ErrFailedPrecondition unless the VM runs,
	// with errdefs.ErrAlreadyExists for a serial that is in use, and with errdefs.ErrResourceExhausted when all slots are.
	// A failed call leaves nothing plugged. The caller keeps the file. Calls for one serial must not overlap.
	AttachDisk(ctx context.Context, disk HotDisk) (address string, err error)

	// DetachDisk takes a disk out that AttachDisk has plugged in, and returns once the VM has given the device back. The
	// guest must agree: the call fails with ctx's error when it has not by then, and may be repeated. A serial that is
	// not in use, or a VM that has ended, is no error.
	DetachDisk(ctx context.Context, serial string) error

	// PCIPath returns where the guest finds the physical device with an address on the host: the numbers of the port and of the
	// slot behind it, in hexadecimal ("10.1/00"). It is valid from New on, and fails with errdefs.ErrNotFound for a device that the VM
	// does not have.
	PCIPath(hostAddress string) (path string, err error)

	// Stop ends the VM: an orderly request first, by force when ctx ends or after the driver's grace period.
	// It returns once everything the VM held is released, is idempotent, and is legal in every state.
	Stop(ctx context.Context) error
}

// Config says what a VM is made of.
type Config struct {
	// ID is the sandbox id; it names the VM in process lists and logs.
	ID string
	// StateDir is a private directory (mode 0700) for sockets and files; the driver may write to it and nowhere else.
	StateDir string
	// NetNS is the path of the network namespace in which the monitor runs; empty means the shim's own.
	NetNS string

	VCPUs     uint32
	MemoryMiB uint32
	Memory    Memory
	Placement Placement

	// Firmware is the image that the machine starts with, and that starts Kernel; empty starts the kernel at once.
	Firmware string
	// Confidential keeps the host out of the guest; nil for a guest that the host can look into.
	Confidential *Confidential
	// Kernel and Initrd are paths of the guest image's two parts.
	Kernel, Initrd string
	// KernelParams are appended to the driver's own kernel command line, in order.
	KernelParams []string

	Disks []Disk
	NICs  []NIC
	// PCIDevices are physical devices of the host. The guest numbers their buses in this order.
	PCIDevices []PCIDevice
}

// Disk is a block device present at boot.
type Disk struct {
	// Serial identifies the disk to the guest; at most 20 bytes of [a-z0-9-].
	Serial string
	// Path names the disk's file, unless File is set.
	Path string
	// File is the open file or device, for a disk without a name. New takes it, and it is closed whatever becomes of the VM,
	// also when New fails.
	File     *os.File
	ReadOnly bool
	// Volatile is a disk whose content ends with the VM: nobody waits for it to be stored, and what the guest discards is
	// given back to the host.
	Volatile bool
}

// HotDisk is a block device that is plugged into a running VM.
type HotDisk struct {
	// Serial identifies the disk as Disk's does.
	Serial string
	// File is the open device, or a regular file; open for reading alone when ReadOnly.
	File     *os.File
	ReadOnly bool
}

// NIC is a network card backed by an open tap device.
type NIC struct {
	// Tap is the open tap queue. New takes it, and it is closed whatever becomes of the VM, also when New fails.
	Tap *os.File
	// MAC is the card's hardware address, the same as the pod interface's.
	MAC net.HardwareAddr
}

// PCIDevice is a PCI function of the host that the guest is given while the VM lives.
type PCIDevice struct {
	// Address is its place on the host, such as 0000:41:00.0.
	Address string
	// VendorID and DeviceID are what it calls itself.
	VendorID, DeviceID uint16
	BARs               []BAR
	// NUMANode is the memory node of the host next to it, -1 when the host does not know.
	NUMANode int
	// OwnNode says that the host opens the device by a node of its own (iommufd), and not by that of its group.
	OwnNode bool
	// Claim, when set, is an open file that the monitor inherits, and so keeps open exactly as long as it can reach the device.
	// The caller keeps it, too.
	Claim *os.File
}

// BAR is a base address register of a PCI function: a window of memory, or of I/O ports, that the device answers on.
type BAR struct {
	// Bytes is its size, a power of two.
	Bytes uint64
	// IO says ports. Of memory, Prefetchable says that reads have no effects, and Wide that the address has 64 bits.
	IO, Prefetchable, Wide bool
}

// Exit tells how a VM ended.
type Exit struct {
	At time.Time
	// Requested is true when Stop caused it.
	Requested bool
	// Err is nil for an orderly end; otherwise it quotes the reason and the monitor's last words.
	Err error
}
