// Package qemu is the VM driver on QEMU.
//
// A VM is one QEMU process, started in the pod's network namespace. Shim and QEMU talk over socket pairs made before
// the start, so that no socket lies on disk, none can be connected to by anybody else, and the length of a path
// (108 bytes for a unix socket) limits nothing:
//
//	qmp      commands and events (package qmp)
//	console  the guest's serial console, of which the last lines are kept
//	port     the control channel (package transport); with vsock, the vhost device takes its place
//
// The life of an Instance:
//
//	new --Start--> starting --QMP answers--> running --exit--> ended
//	 |                |                                          ^
//	 +----Stop--------+------------ exit, Stop, fault -----------+
//
// QEMU never outlives the shim: it is started with a parent death signal. That signal is bound to the thread that
// forked, so that thread belongs to the instance until QEMU has ended. Should the signal fail (it is dropped when QEMU
// gains privileges by its file's mode), Cleanup finds the process by a file in the state directory.
package qemu
