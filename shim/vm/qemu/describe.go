package qemu

import "github.com/coffer-project/coffer/shim/vm"

// Description is a VM as New and Start would make it.
type Description struct {
	// Arguments is QEMU's command line, Accelerator and CPU what of it says how and as what the guest's processors run.
	Arguments   []string
	Accelerator Accelerator
	CPU         string
	// KernelLine is the guest kernel's command line.
	KernelLine string
}

// Describe tells what QEMU would be started with, for people, and for owners who compute measurements. It looks at nothing but
// config and the driver's options: where those say "auto", this says KVM and vsock.
func (d *Driver) Describe(config vm.Config) Description {
	accelerator := d.options.Accelerator
	if accelerator == Auto || config.Confidential != nil {
		accelerator = KVM
	}
	useVsock := d.options.Transport != Serial
	m, _ := d.machine(config, accelerator).wire(config, useVsock, &wires{cid: describedCID})
	return Description{Arguments: arguments(m), Accelerator: accelerator, CPU: m.cpu(), KernelLine: m.append()}
}

// describedCID stands for the context id that a real VM gets; 0 to 2 are taken by the protocol.
const describedCID = 3
