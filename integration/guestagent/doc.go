// Package guestagent tests the guest's real agent in a VM, without the host's half: the test is the host, and speaks the agent protocol
// over the serial port. What is proven here is what needs the guest's own kernel: control groups version 2, their figures and events,
// the overlay on memory, and PID 1 reaping.
package guestagent
