package vmtest

import (
	"context"
	"net"
	"strconv"
	"sync"
)

// Listen opens a port in the fake guest; Dial connects to it. When the VM ends, the listener and its connections are
// closed on both sides.
func (i *Instance) Listen(port uint32) net.Listener {
	l := &listener{instance: i, port: port, queue: make(chan net.Conn), closed: make(chan struct{})}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.ended {
		close(l.closed)
		return l
	}
	i.listeners[port] = l
	close(i.changed)
	i.changed = make(chan struct{})
	return l
}

type listener struct {
	instance *Instance
	port     uint32
	queue    chan net.Conn

	mu     sync.Mutex
	closed chan struct{}
	conns  []net.Conn
}

func (l *listener) dial(ctx context.Context) (net.Conn, error) {
	host, guest := pipe()
	l.mu.Lock()
	select {
	case <-l.closed:
		l.mu.Unlock()
		return nil, net.ErrClosed
	default:
	}
	l.conns = append(l.conns, host, guest)
	l.mu.Unlock()
	select {
	case l.queue <- guest:
		return host, nil
	case <-l.closed:
	case <-ctx.Done():
	}
	host.Close()
	guest.Close()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return nil, net.ErrClosed
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.queue:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *listener) Close() error {
	l.instance.mu.Lock()
	if l.instance.listeners[l.port] == l {
		delete(l.instance.listeners, l.port)
	}
	l.instance.mu.Unlock()
	l.shut(false)
	return nil
}

// shut closes the listener, and on the VM's death the connections too.
func (l *listener) shut(dead bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.closed:
	default:
		close(l.closed)
	}
	if dead {
		for _, conn := range l.conns {
			conn.Close()
		}
	}
}

// Addr implements net.Listener.
func (l *listener) Addr() net.Addr { return addr(l.port) }

type addr uint32

func (addr) Network() string  { return "vmtest" }
func (a addr) String() string { return strconv.FormatUint(uint64(a), 10) }
