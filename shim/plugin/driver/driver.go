// Package driver makes the VM driver that a configuration of the shim describes. It is QEMU's, and nobody beside it and the
// plugin has to know. The shim and the admin's trial boot take the same one.
package driver

import (
	"github.com/coffer-project/coffer/shim/config"
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
