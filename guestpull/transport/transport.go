package transport

import (
	"context"
	"fmt"
	"net"

	"github.com/containerd/log"
	"github.com/mdlayher/vsock"
)

// Transport is the control channel that this machine has. Its methods are safe for concurrent use.
type Transport struct {
	kind   string
	listen func(port uint32) (net.Listener, error)
}

// Find waits for a control channel to appear: the virtio serial port of proto/mux or a vsock device, the port first. Once
// it is found, a serial channel with all its listeners serves until ctx ends. When ctx ends before, the error says what was
// missing.
func Find(ctx context.Context) (*Transport, error) {
	t, err := waitForChannel(ctx, sysfs{root: "/sys", dev: "/dev", cid: vsock.ContextID})
	if err != nil {
		return nil, err
	}
	log.G(ctx).WithField("transport", t.kind).Info("control channel found")
	return t, nil
}

// Kind is "vsock" or "serial".
func (t *Transport) Kind() string { return t.kind }

// Listen offers a port to the host. A port has one listener at a time. Closing the listener frees the port; connections
// already accepted live on.
func (t *Transport) Listen(_ context.Context, port uint32) (net.Listener, error) {
	l, err := t.listen(port)
	if err != nil {
		return nil, fmt.Errorf("listen on port %d of the control channel: %w", port, err)
	}
	return l, nil
}
