// Package vfio gives physical PCI devices of the host to pods: GPUs, NVSwitches, network cards, NVMe disks. It finds which
// devices a pod is to have, reads from sysfs what they are, and keeps each for one pod at a time.
//
// A pod's devices are a Claim:
//
//	Reserve --> reserved --Add--> added --Remove--> removed
//	               |                 ^                 ^
//	               |                 | (again)         |
//	               +----Remove-------------------------+
//	   a Remove that failed leaves "removing", from which only another Remove leads
//
// Reserve takes a lock per device, and writes down who has it. The lock is the kernel's, on an open file that the VM's monitor
// inherits: it is free exactly when neither the shim nor the VM lives any more. So whoever gets the lock of a device that has a
// record left knows that its owner is dead, and puts the device back as Remove would have.
//
// The package never binds a device to another driver unless it is told to (Manager.Bind), and then only devices that the
// node's CDI specifications name: everybody else's devices are the administrator's or the GPU Operator's to prepare.
package vfio
