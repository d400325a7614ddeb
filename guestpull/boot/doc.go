// Package boot is what the guest does as PID 1 before anything else: it makes the root file system movable, mounts the
// kernel's file systems, reads the kernel command line through an allow-list, loads modules, brings loopback up, checks
// entropy and clock, reaps orphans, and reads the initdata disk. It also owns the way out: one clear line on the console,
// then power off.
//
// Everything it reads comes from the host. The kernel command line, the modules and this program are part of the measured
// launch on a TEE; the initdata disk is not, and is believed only where its digest is bound (see InitData).
//
// It never starts a container, never opens a network connection and never logs what a disk or the command line contain.
package boot
