package transport

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/hashicorp/yamux"

	"github.com/coffer-project/coffer/proto/mux"
)

// headerTimeout bounds how long a stream may take to say which port it wants; long, because an emulated machine under
// load is slow, and a stream that never says costs little.
const headerTimeout = time.Minute

// switchboard hands the streams of one session after another to the listeners of their ports.
type switchboard struct {
	mu        sync.Mutex
	listeners map[uint32]*listener
	err       error // why no listener can be added any more
}

func newSwitchboard() *switchboard {
	return &switchboard{listeners: map[uint32]*listener{}}
}

// listen takes the port; it fails with errdefs.ErrAlreadyExists while another listener has it.
func (b *switchboard) listen(port uint32) (*listener, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return nil, b.err
	}
	if b.listeners[port] != nil {
		return nil, fmt.Errorf("port has a listener: %w", errdefs.ErrAlreadyExists)
	}
	l := &listener{port: port, conns: make(chan net.Conn), closed: make(chan struct{})}
	l.free = func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.listeners[port] == l {
			delete(b.listeners, port)
		}
	}
	b.listeners[port] = l
	return l, nil
}

// shut ends all listeners with the error, now and later.
func (b *switchboard) shut(err error) {
	b.mu.Lock()
	listeners := b.listeners
	b.listeners = map[uint32]*listener{}
	if b.err == nil {
		b.err = err
	}
	b.mu.Unlock()
	for _, l := range listeners {
		l.end(err)
	}
}

func (b *switchboard) find(port uint32) *listener {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.listeners[port]
}

// serve runs one session on the channel until the host leaves, says something that is not the protocol, or ctx ends. It
// closes the channel, and returns when all streams' hand-overs are over. The error tells why the session ended.
func (b *switchboard) serve(ctx context.Context, channel io.ReadWriteCloser) error {
	session, err := yamux.Server(mux.NewChannel(channel), mux.Config())
	if err != nil {
		return fmt.Errorf("start session: %w", err)
	}
	defer context.AfterFunc(ctx, func() { _ = session.Close() })()
	var pending sync.WaitGroup
	defer pending.Wait()
	defer session.Close()
	for {
		stream, err := session.Accept()
		if err != nil {
			return fmt.Errorf("accept stream: %w", err)
		}
		pending.Go(func() { b.dispatch(ctx, session, stream) })
	}
}

// dispatch reads a stream's header and hands the stream over. A stream that nobody takes is closed.
func (b *switchboard) dispatch(ctx context.Context, session *yamux.Session, stream net.Conn) {
	taken := false
	defer func() {
		if !taken {
			_ = stream.Close()
		}
	}()
	// Setting a deadline on a yamux stream cannot fail.
	_ = stream.SetReadDeadline(time.Now().Add(headerTimeout))
	port, err := mux.ReadHeader(stream)
	if err != nil {
		log.G(ctx).WithError(err).Debug("stream on the control channel dropped")
		return
	}
	_ = stream.SetReadDeadline(time.Time{})
	l := b.find(port)
	if err := mux.WriteReply(stream, l != nil); err != nil || l == nil {
		log.G(ctx).WithError(err).WithField("port", port).Debug("stream for a port without listener dropped")
		return
	}
	select {
	case l.conns <- stream:
		taken = true
	case <-l.closed:
	case <-session.CloseChan():
	}
}

// listener implements net.Listener for one port.
type listener struct {
	port   uint32
	conns  chan net.Conn
	closed chan struct{}
	free   func()

	once sync.Once
	err  error // valid once closed is closed
}

// Accept waits for the host's next stream to this port.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.closed:
		return nil, l.err
	}
}

// Close frees the port and ends Accept with net.ErrClosed.
func (l *listener) Close() error {
	l.end(net.ErrClosed)
	l.free()
	return nil
}

func (l *listener) end(err error) {
	l.once.Do(func() {
		l.err = err
		close(l.closed)
	})
}

// Addr names the port.
func (l *listener) Addr() net.Addr { return address(l.port) }

// address is a port of the serial channel.
type address uint32

// Network is a name for logs.
func (address) Network() string { return "virtio-serial" }

// String is the port's number.
func (a address) String() string { return fmt.Sprint(uint32(a)) }
