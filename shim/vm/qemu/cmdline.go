package qemu

import (
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/coffer-project/coffer/proto/mux"
	"github.com/coffer-project/coffer/shim/vm"
)

// machine is all that the command line depends on. The fd fields are descriptor numbers in QEMU.
type machine struct {
	accelerator Accelerator // KVM or TCG
	cpuModel    string
	seccomp     bool

	id           string
	vcpus        uint32
	memoryMiB    uint32
	memory       vm.Memory
	placement    vm.Placement
	firmware     string // empty for none
	confidential *vm.Confidential
	kernel       string
	initrd       string // empty for none
	kernelParams []string

	qmpFD     int
	consoleFD int
	// portFD is the serial control channel's; vhostFD and cid are vsock's. One of the two is 0.
	portFD  int
	vhostFD int
	cid     uint32

	disks []disk
	nics  []nic
	pci   []vm.PCIDevice
}

// disk is a disk of the machine; fd is 0 for one that QEMU opens by its path.
type disk struct {
	vm.Disk
	fd int
}

type nic struct {
	fd  int
	mac net.HardwareAddr
}

// baseParams is the kernel command line of every guest: errors on the console and nothing else, and a kernel that
// panics resets the machine at once, which -no-reboot turns into the end of QEMU.
var baseParams = []string{"console=ttyS0", "quiet", "panic=-1"}

// tcgParams save start-up time under emulation and weaken nothing: no search for hardware that is not there, no timer
// calibration against an emulated timer, no self-tests of ciphers, no waiting in RCU's grace periods, no rewriting of locks
// for a single processor (the code is translated anyway), and no entropy from the jitter of an emulated processor: the
// guest has a virtio-rng.
var tcgParams = []string{
	"no_timer_check", "tsc=reliable", "8250.nr_uarts=1", "i8042.noaux", "cryptomgr.notests", "rcupdate.rcu_expedited=1",
	"noreplace-smp", "initcall_blacklist=jent_mod_init,crypto_kdf108_init",
}

// arguments is QEMU's command line. It is a pure function.
func arguments(m machine) []string {
	args := []string{
		"-name", "guest=" + escape(m.id) + ",debug-threads=on",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		// The guest's memory is QEMU's own: the host backs it with huge pages, which shared memory rarely gets, never merges
		// it with that of other guests, and leaves it out of core dumps.
		"-machine", "q35,mem-merge=off,dump-guest-core=off,vmport=off,smbus=off" + m.machineOptions(),
		"-accel", m.accel(),
		"-cpu", m.cpu(),
		"-smp", strconv.FormatUint(uint64(m.vcpus), 10),
		"-m", fmt.Sprintf("%dM", m.memoryMiB),
	}
	args = append(args, m.backend()...)
	args = append(args, m.tee()...)
	if m.firmware != "" {
		args = append(args, "-bios", m.firmware)
	}
	args = append(args, "-kernel", m.kernel)
	if m.initrd != "" {
		args = append(args, "-initrd", m.initrd)
	}
	args = append(args,
		"-append", m.append(),
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d", m.qmpFD),
		"-mon", "chardev=qmp,mode=control",
		"-chardev", fmt.Sprintf("socket,id=console,fd=%d", m.consoleFD),
		"-serial", "chardev:console",
		"-object", "rng-builtin,id=rng",
		"-device", "virtio-rng-pci,disable-legacy=on,rng=rng",
		"-device", "pvpanic-pci",
		// Behind it, disks are plugged into the running machine. One bridge has room for all of them and costs less at
		// boot than a PCIe port each; the sizes are what a full one needs.
		"-device", fmt.Sprintf("pci-bridge,id=%s,addr=%#x,chassis_nr=1,shpc=off,io-reserve=4k,mem-reserve=1m,pref64-reserve=1m",
			bridge, bridgeSlot),
	)
	args = append(args, m.channel()...)
	for i, disk := range m.disks {
		args = append(args, disk.arguments(i)...)
	}
	for i, nic := range m.nics {
		args = append(args,
			"-netdev", fmt.Sprintf("tap,id=net%d,fd=%d", i, nic.fd),
			// No option ROM: nothing boots from the network, and the file is in another package.
			"-device", fmt.Sprintf("virtio-net-pci,disable-legacy=on,netdev=net%d,mac=%s,romfile=", i, nic.mac),
		)
	}
	args = append(args, pciArguments(m.pci)...)
	if m.seccomp {
		args = append(args, "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
	}
	return args
}

// firstDiskSet is the number of the first set of descriptors for disks; hot-plugged ones use smaller numbers.
const firstDiskSet = 100

// arguments are those of the disk with number i.
func (d disk) arguments(i int) (args []string) {
	path := d.Path
	if d.fd != 0 {
		set := firstDiskSet + i
		args = append(args, "-add-fd", fmt.Sprintf("fd=%d,set=%d", d.fd, set))
		path = fmt.Sprintf("/dev/fdset/%d", set)
	}
	node := fmt.Sprintf("driver=raw,node-name=disk%d,read-only=%s,file.driver=file,file.filename=%s", i, onOff(d.ReadOnly), escape(path))
	device := fmt.Sprintf("virtio-blk-pci,disable-legacy=on,drive=disk%d,serial=%s", i, escape(d.Serial))
	if d.Volatile {
		node += ",cache.no-flush=on,discard=unmap,file.discard=unmap"
		// A full host is the guest's error to handle; QEMU would stop the machine.
		device += ",werror=report,rerror=report"
	}
	return append(args, "-blockdev", node, "-device", device)
}

func (m machine) cpu() string {
	switch {
	case m.cpuModel != "":
		return m.wideModel(m.cpuModel)
	case m.accelerator == KVM:
		return "host"
	}
	// Emulated, the fast string instructions copy and clear byte by byte. Without them a kernel and Go programs take wider
	// ones, which saves a fifth of the kernel's boot.
	return "max,-erms,-fsrm"
}

// append is the kernel command line; later parameters override earlier ones.
func (m machine) append() string {
	params := append([]string(nil), baseParams...)
	if m.accelerator == TCG {
		params = append(params, tcgParams...)
	}
	return strings.Join(append(params, m.kernelParams...), " ")
}

func (m machine) channel() []string {
	if m.vhostFD != 0 {
		return []string{"-device", fmt.Sprintf("vhost-vsock-pci,disable-legacy=on,guest-cid=%d,vhostfd=%d", m.cid, m.vhostFD)}
	}
	return []string{
		"-device", "virtio-serial-pci,disable-legacy=on",
		"-chardev", fmt.Sprintf("socket,id=port,fd=%d", m.portFD),
		"-device", "virtserialport,chardev=port,name=" + mux.PortName,
	}
}

// escape makes text one value of a QEMU option, in which a comma ends the value and two stand for one.
func escape(text string) string { return strings.ReplaceAll(text, ",", ",,") }

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}
