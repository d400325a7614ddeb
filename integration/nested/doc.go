// Command nested runs pods where this machine cannot: in a machine of its own, which QEMU emulates with an IOMMU and with
// devices behind it. There, real vhost-vsock is what the shim talks to guests with, and a device can be given to a pod.
//
//	this machine    builds the inner machine's disk out of its own programs, boots it, shows what it says
//	└ node          Debian's kernel, containerd, Coffer; the program in the folder node is PID 1 and the tests
//	  └ pod's VM    QEMU in QEMU, about a hundred times slower than on a real machine
//
// The guest image must be one with Debian's kernel: that of make kernel has no driver for NVMe disks.
//
// It is not among the tests of make test, because of the time that takes.
package main
