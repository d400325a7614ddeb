// Package guestboot tests how a guest starts and ends, in a real VM with the real kernel: PID 1's work, its way out on
// faults, the control channel with hosts that come and go, and the initdata disk. Its PID 1 is testinit, the real boot
// code without the agent, so that a fault here is a fault of the boot.
package guestboot
