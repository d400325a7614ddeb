package qemu

import (
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
)

// Accelerator is how QEMU runs guest code.
type Accelerator string

// Accelerators.
const (
	// Auto boots the kernel once under KVM and takes TCG when that does not work.
	Auto Accelerator = "auto"
	KVM  Accelerator = "kvm"
	TCG  Accelerator = "tcg"
)

// Transport is the kind of control channel.
type Transport string

// Transports.
const (
	// AnyTransport is Vsock where the machine offers it and Serial elsewhere.
	AnyTransport Transport = "auto"
	Vsock        Transport = "vsock"
	Serial       Transport = "serial"
)

// Options say how this node runs QEMU; all but CPUModel are required.
type Options struct {
	// Binary is the path of qemu-system-x86_64, 10.0 or later.
	Binary      string
	Accelerator Accelerator
	// CPUModel is QEMU's name; empty means host under KVM and max under TCG.
	CPUModel  string
	Transport Transport
	// Seccomp runs QEMU under its own system call filter.
	Seccomp bool
	// ConsoleLines is how many of the console's last lines are kept.
	ConsoleLines int
	// ShutdownGrace is how long QEMU may take to end when asked to.
	ShutdownGrace time.Duration
	// ProbeTimeout bounds the trial boot of Auto; its outcome is kept in CacheDir, as is what QEMU says it can do.
	ProbeTimeout time.Duration
	CacheDir     string
}

// validate returns all faults, joined.
func (o Options) validate() error {
	var faults []error
	need := func(ok bool, format string, args ...any) {
		if !ok {
			faults = append(faults, fmt.Errorf("%w: qemu: "+format, append([]any{errdefs.ErrInvalidArgument}, args...)...))
		}
	}
	need(o.Binary != "", "no binary")
	need(o.Accelerator == Auto || o.Accelerator == KVM || o.Accelerator == TCG, "unknown accelerator %q", o.Accelerator)
	need(o.Transport == AnyTransport || o.Transport == Vsock || o.Transport == Serial, "unknown transport %q", o.Transport)
	need(o.ConsoleLines > 0, "console lines: %d", o.ConsoleLines)
	need(o.ShutdownGrace > 0, "shutdown grace: %s", o.ShutdownGrace)
	need(o.Accelerator != Auto || o.ProbeTimeout > 0, "probe timeout: %s", o.ProbeTimeout)
	need(o.Accelerator != Auto || o.CacheDir != "", "no cache directory")
	return errors.Join(faults...)
}
