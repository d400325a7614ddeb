// Package transport is the host's end of the control channel to a guest: Dial(port) gives a stream to whoever listens
// on that port there. There are two kinds: Serial, a yamux session over one virtio serial port (proto/mux), which works
// on every machine; and Vsock, which needs /dev/vhost-vsock and has no head-of-line blocking between streams.
//
// Both wait for a guest that is not up yet. What comes back over a stream is the guest's word and is not trusted here.
package transport

import (
	"context"
	"net"
)

// Dialer reaches the ports of one guest.
type Dialer interface {
	// Dial opens a stream to port. It waits for the guest and for a listener until ctx ends, and fails at once with
	// errdefs.ErrUnavailable when the channel is gone for good.
	Dial(ctx context.Context, port uint32) (net.Conn, error)
	// Close ends the channel and, for Serial, every stream. It is idempotent.
	Close() error
}
