// Package transport is the guest's end of the control channel to the shim: it offers listeners on numbered ports, over
// AF_VSOCK where the machine has it, and otherwise over one virtio serial port that carries a yamux session
// (proto/mux).
//
// The serial port needs care. It has one peer at a time and says nothing about a change of peer except a hang-up; while
// nobody is connected, reading it returns end of file at once. So each session waits, by events and not by trying, until
// the hang-up is over, and lives exactly as long as its peer:
//
//	search -> open -> wait for peer -> session -> peer gone -> close, open ...
//
// The bytes of the channel come from the host and are hostile. They are only framed here; what a stream says is checked
// by who listens on its port.
package transport
