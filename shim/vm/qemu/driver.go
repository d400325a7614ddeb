package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/coffer-project/coffer/proto/lazyregexp"
	"github.com/coffer-project/coffer/shim/transport"
	"github.com/coffer-project/coffer/shim/vm"
)

// Limits of a vm.Config. The kernel's command line on x86 is 2048 bytes.
const (
	maxKernelLine = 2047
	minMemoryMiB  = 64
)

var (
	idPattern     = lazyregexp.New(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)
	serialPattern = lazyregexp.New(`^[a-z0-9-]{1,20}$`)
)

// Driver is the vm.Driver on QEMU. Its zero value can Cleanup, which depends on no option, and nothing else.
type Driver struct{ options Options }

var _ vm.Driver = (*Driver)(nil)

// NewDriver checks the options' form; what the machine lacks is found by New.
func NewDriver(options Options) (*Driver, error) {
	if err := options.validate(); err != nil {
		return nil, err
	}
	return &Driver{options: options}, nil
}

// New implements vm.Driver.
func (d *Driver) New(ctx context.Context, config vm.Config) (_ vm.Instance, retErr error) {
	defer func() {
		if retErr != nil {
			closeFiles(config)
			retErr = fmt.Errorf("prepare vm %s: %w", config.ID, retErr)
		}
	}()
	if err := errors.Join(check(config)...); err != nil {
		return nil, err
	}
	if err := errors.Join(checkBinary(d.options.Binary), checkFiles(config)); err != nil {
		return nil, err
	}
	accelerator, err := d.accelerator(ctx, config)
	if err != nil {
		return nil, err
	}
	if err := d.require(ctx, needs(config)); err != nil {
		return nil, err
	}
	useVsock, err := d.useVsock(ctx, config.Firmware != "")
	if err != nil {
		return nil, err
	}
	i := &Instance{
		options: d.options,
		config:  config,
		machine: d.machine(config, accelerator),
		vsock:   useVsock,
		console: &lines{keep: d.options.ConsoleLines},
		done:    make(chan struct{}),
	}
	if line := i.machine.append(); len(line) > maxKernelLine {
		return nil, fmt.Errorf("%w: kernel command line of %d bytes, more than %d", errdefs.ErrInvalidArgument, len(line), maxKernelLine)
	}
	if err := i.machine.checkRoom(hostAddressBits()); err != nil {
		return nil, err
	}
	return i, nil
}

// machine is what the command line depends on, less the descriptors.
func (d *Driver) machine(config vm.Config, accelerator Accelerator) machine {
	return machine{
		accelerator: accelerator, cpuModel: d.options.CPUModel, seccomp: d.options.Seccomp,
		id: config.ID, vcpus: config.VCPUs, memoryMiB: config.MemoryMiB,
		memory: config.Memory, placement: config.Placement, firmware: config.Firmware, confidential: config.Confidential,
		kernel: config.Kernel, initrd: config.Initrd, kernelParams: config.KernelParams,
		pci: config.PCIDevices,
	}
}

// Cleanup implements vm.Driver.
func (d *Driver) Cleanup(ctx context.Context, stateDir string) error { return cleanup(ctx, stateDir) }

// useVsock chooses the control channel. Firmware may make a terminal of the serial port, and swallow what the shim writes to
// the guest before it is up: OVMF does from 2023 on.
func (d *Driver) useVsock(ctx context.Context, firmware bool) (bool, error) {
	err := transport.VsockAvailable()
	switch {
	case firmware && (err != nil || d.options.Transport == Serial):
		return false, errors.Join(fmt.Errorf("%w: a guest that starts with firmware is reached by vsock only: modprobe vhost_vsock, and "+
			"set hypervisor.transport to auto", errdefs.ErrFailedPrecondition), err)
	case d.options.Transport == Serial:
		return false, nil
	case d.options.Transport == Vsock:
		return true, err
	}
	if err != nil {
		log.G(ctx).WithError(err).Debug("no vsock, using a serial port")
	}
	return err == nil, nil
}

// check returns the faults of config's form.
func check(config vm.Config) (faults []error) {
	need := func(ok bool, format string, args ...any) {
		if !ok {
			faults = append(faults, fmt.Errorf("%w: "+format, append([]any{errdefs.ErrInvalidArgument}, args...)...))
		}
	}
	need(idPattern.MatchString(config.ID), "sandbox id %q", config.ID)
	need(config.StateDir != "", "no state directory")
	need(config.VCPUs > 0, "no cpus")
	need(config.MemoryMiB >= minMemoryMiB, "%d MiB of memory, less than %d", config.MemoryMiB, minMemoryMiB)
	need(config.Kernel != "", "no kernel")
	faults = append(faults, checkLaunch(config)...)
	for _, param := range config.KernelParams {
		bad := func(r rune) bool { return r <= ' ' || r > '~' }
		need(param != "" && !strings.ContainsFunc(param, bad), "kernel parameter %q", param)
	}
	serials := map[string]bool{}
	for _, disk := range config.Disks {
		need(serialPattern.MatchString(disk.Serial), "serial %q of disk %s", disk.Serial, disk.Path)
		need(!serials[disk.Serial], "two disks with serial %q", disk.Serial)
		serials[disk.Serial] = true
	}
	for n, nic := range config.NICs {
		need(nic.Tap != nil, "network card %d has no tap", n)
		need(len(nic.MAC) == 6, "network card %d has hardware address %q", n, nic.MAC)
	}
	checkPCI(config.PCIDevices, need)
	return faults
}

// checkFiles reports files that are not there, so that the administrator reads which key to change and not what QEMU
// makes of it.
func checkFiles(config vm.Config) error {
	var faults []error
	fault := func(what string, err error) {
		faults = append(faults, fmt.Errorf("%w: %s: %w", errdefs.ErrFailedPrecondition, what, err))
	}
	readable := func(what, path string) {
		file, err := os.Open(path)
		if err != nil {
			fault(what, err)
			return
		}
		file.Close()
	}
	if err := checkKernel(config.Kernel, config.Firmware != ""); err != nil {
		fault("guest kernel (hypervisor.kernel)", err)
	}
	if config.Initrd != "" {
		readable("guest initrd (hypervisor.initrd)", config.Initrd)
	}
	if config.Firmware != "" {
		readable("firmware (hypervisor.firmware)", config.Firmware)
	}
	for _, disk := range config.Disks {
		if disk.File == nil {
			readable("disk "+disk.Serial, disk.Path)
		}
	}
	return errors.Join(faults...)
}

// checkKernel tells a file that is no kernel, of which QEMU says that it is "too old", and a vmlinux that firmware cannot start.
func checkKernel(path string, firmware bool) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	// vmlinux is an ELF file; bzImage has a signature in its boot sector.
	head := make([]byte, 0x206)
	n, err := io.ReadFull(file, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read %s: %w", path, err)
	}
	switch head = head[:n]; {
	case bytes.HasSuffix(head, []byte("HdrS")):
		return nil
	case bytes.HasPrefix(head, []byte("\x7fELF")) && !firmware:
		return nil
	case bytes.HasPrefix(head, []byte("\x7fELF")):
		return fmt.Errorf("%s is a vmlinux, and firmware starts a bzImage: name vmlinuz of the guest image", path)
	}
	return fmt.Errorf("%s is neither a vmlinux nor a bzImage", path)
}

// closeFiles closes what the driver was given.
func closeFiles(config vm.Config) {
	for _, nic := range config.NICs {
		if nic.Tap != nil {
			nic.Tap.Close()
		}
	}
	for _, disk := range config.Disks {
		if disk.File != nil {
			disk.File.Close()
		}
	}
}
