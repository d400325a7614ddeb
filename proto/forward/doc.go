// Package forward is what is said on a stream by which the host reaches a TCP port on the loopback of a pod in a VM.
//
// The host opens one stream to mux.ForwardPort for each connection, sends a ForwardRequest and gets a ForwardResponse,
// each as a protobuf message behind its length in four bytes, big-endian. When the guest has accepted, both ends send
// data in frames: a length, likewise, and that many bytes. Length zero ends the sender's direction and leaves the other
// one open, as TCP's FIN does. A stream that ends without it was reset.
//
// The end of a direction is said in a frame because not every channel can: yamux ends a half-closed stream after a
// while, and says nothing of a reset. Flow control, in contrast, is the channel's own, stream by stream.
//
// The peer's bytes are untrusted on both sides; lengths are bounded before anything is allocated.
package forward
