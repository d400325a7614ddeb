package transport

import (
	"context"
	"fmt"
	"net"
	"os"

	"github.com/containerd/log"
	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"
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

// OpenPort opens another virtio serial port than that of the control channel, once the machine has one of that name. When ctx ends before, the
// error is errdefs.ErrNotFound too.
func OpenPort(ctx context.Context, name string) (*os.File, error) {
	fs := sysfs{root: "/sys", dev: "/dev"}
	node, err := waitFor(ctx, "the host to plug it in", func() (string, error) { return fs.findPort(name) })
	if err != nil {
		return nil, err
	}
	// Not blocking: then the Go runtime polls it, and no thread waits for the host.
	port, err := os.OpenFile(node, os.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open virtio serial port %q: %w", name, err)
	}
	return port, nil
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
