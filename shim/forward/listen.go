package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/shim/netns"
)

// listening is what Start makes in a namespace: one listener by address family, and what steers connections to them.
type listening struct {
	listeners map[uint32]*net.TCPListener
	steering  io.Closer
}

// listen opens the listeners in the namespace at path and steers all connections to its loopback to them.
func listen(ctx context.Context, path string) (_ *listening, retErr error) {
	l := &listening{listeners: map[uint32]*net.TCPListener{}}
	defer func() {
		if retErr != nil {
			retErr = errors.Join(retErr, l.Close())
		}
	}()
	if err := netns.Do(path, func() error { return l.open(ctx) }); err != nil {
		return nil, err
	}
	namespace, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	defer namespace.Close()
	if l.steering, err = steer(namespace, l.listeners); err != nil {
		return nil, err
	}
	return l, nil
}

// open opens the listeners on the calling thread's loopback. A machine without IPv6 has no use for the second one.
func (l *listening) open(ctx context.Context) error {
	config := &net.ListenConfig{Control: freeBind}
	// Multipath TCP, a listener's default in Go where the kernel has it, is not for socket maps.
	config.SetMultipathTCP(false)
	for slot, address := range map[uint32]struct{ network, address string }{
		slotIPv4: {"tcp4", "127.0.0.1:0"}, slotIPv6: {"tcp6", "[::1]:0"},
	} {
		listener, err := config.Listen(ctx, address.network, address.address)
		if slot == slotIPv6 && errors.Is(err, unix.EAFNOSUPPORT) {
			continue
		}
		if err != nil {
			return fmt.Errorf("listen for forwarded connections: %w", err)
		}
		l.listeners[slot] = listener.(*net.TCPListener)
	}
	return nil
}

// freeBind allows an address that the namespace does not have: loopback may come up later, or without IPv6.
func freeBind(network, _ string, socket syscall.RawConn) error {
	level, option := unix.IPPROTO_IP, unix.IP_FREEBIND
	if network == "tcp6" {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_FREEBIND
	}
	var setErr error
	err := socket.Control(func(fd uintptr) { setErr = unix.SetsockoptInt(int(fd), level, option, 1) })
	return errors.Join(err, setErr)
}

// Close ends the steering first, so that connections are refused rather than accepted by nobody.
func (l *listening) Close() error {
	var faults []error
	if l.steering != nil {
		faults = append(faults, l.steering.Close())
	}
	for _, listener := range l.listeners {
		if err := listener.Close(); !errors.Is(err, net.ErrClosed) {
			faults = append(faults, err)
		}
	}
	if err := errors.Join(faults...); err != nil {
		return fmt.Errorf("end forwarding: %w: %w", err, errdefs.ErrInternal)
	}
	return nil
}
