// Package driver makes the VM driver that a configuration of the shim describes. It is QEMU's, and nobody beside it and the
// plugin has to know. The shim and the admin's trial boot take the same one.
package driver

import (
	"github.com/coffer-project/coffer/shim/config"
	"github.com/coffer-project/coffer/shim/vm"
	"github.com/coffer-project/coffer/shim/vm/qemu"
)

// New makes the driver for a valid configuration. Errors are errdefs.ErrInvalidArgument.
func New(c *config.Config) (*qemu.Driver, error) {
	return qemu.NewDriver(qemu.Options{
		Binary:        c.Hypervisor.Path,
		Accelerator:   qemu.Accelerator(c.Hypervisor.Accelerator),
		CPUModel:      c.Hypervisor.CPUModel,
		Transport:     qemu.Transport(c.Hypervisor.Transport),
		Seccomp:       c.Hypervisor.Seccomp,
		ConsoleLines:  c.Guest.ConsoleLines,
		ShutdownGrace: c.Hypervisor.ShutdownGrace.Duration,
		ProbeTimeout:  c.Hypervisor.ProbeTimeout.Duration,
		CacheDir:      c.StateDir,
	})
}

// Describe tells how a pod's VM is launched under a valid configuration, with everything that a TEE measures of it and none
// of what is the pod's own: its disks, its network and its name. scratch tells whether the pod has a scratch disk.
func Describe(c *config.Config, vcpus uint32, scratch bool) (qemu.Description, error) {
	d, err := New(c)
	if err != nil {
		return qemu.Description{}, err
	}
	h := &c.Hypervisor
	launch := vm.Config{
		ID: "pod", VCPUs: vcpus, MemoryMiB: h.DefaultMemoryMiB, Firmware: h.Firmware, Kernel: h.Kernel, Initrd: h.Initrd,
		KernelParams: c.GuestParams(scratch),
	}
	switch c.TEE {
	case config.TEESNP:
		launch.Confidential = &vm.Confidential{SNP: &vm.SNP{Policy: c.SNP.Policy}}
	case config.TEETDX:
		launch.Confidential = &vm.Confidential{TDX: &vm.TDX{}}
	}
	return d.Describe(launch), nil
}
