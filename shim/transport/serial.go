package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/hashicorp/yamux"

	"github.com/coffer-project/coffer/proto/mux"
)

// errChannelGone is what streams and dials return after the session broke. The guest's end cannot come back: it would
// have to be a new guest.
var errChannelGone = fmt.Errorf("control channel to the guest is broken: %w", errdefs.ErrUnavailable)

// Serial is a Dialer over one byte stream.
type Serial struct{ session *yamux.Session }

var _ Dialer = (*Serial)(nil)

// NewSerial makes a Dialer of the host's end of a virtio serial port, which it owns from now on. The guest need not be
// there yet: what is written waits in the port.
func NewSerial(port net.Conn) (*Serial, error) {
	session, err := yamux.Client(mux.NewChannel(port), mux.Config())
	if err != nil {
		port.Close()
		return nil, fmt.Errorf("open control channel: %w", err)
	}
	return &Serial{session: session}, nil
}

// Done is closed when the session has ended.
func (s *Serial) Done() <-chan struct{} { return s.session.CloseChan() }

// Close implements Dialer.
func (s *Serial) Close() error { return s.session.Close() }

// Dial implements Dialer.
func (s *Serial) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	var conn net.Conn
	err := retry(ctx, func() (bool, error) {
		var err error
		conn, err = s.dialOnce(ctx, port)
		return errors.Is(err, mux.ErrNoListener), err
	})
	if err != nil {
		return nil, fmt.Errorf("dial guest port %d: %w", port, err)
	}
	return conn, nil
}

// dialOnce opens a stream. The work is done aside, because yamux has calls that no deadline reaches: with a guest that
// reads nothing they last as long as the session. Then the goroutine does, too, and no longer.
func (s *Serial) dialOnce(ctx context.Context, port uint32) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	results := make(chan result)
	go func() {
		conn, err := s.open(ctx, port)
		select {
		case results <- result{conn, err}:
		case <-ctx.Done():
			if err == nil {
				conn.Close()
			}
		}
	}()
	select {
	case r := <-results:
		if r.err == nil || ctx.Err() == nil {
			return r.conn, r.err
		}
	case <-ctx.Done():
	}
	return nil, fmt.Errorf("guest has not answered: %w", ctx.Err())
}

func (s *Serial) open(ctx context.Context, port uint32) (_ net.Conn, retErr error) {
	stream, err := s.session.OpenStream()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errChannelGone, err)
	}
	c := &conn{Stream: stream, session: s.session}
	defer func() {
		if retErr != nil {
			c.Close()
		}
	}()
	stop := context.AfterFunc(ctx, func() { _ = stream.SetDeadline(time.Unix(1, 0)) })
	if err := mux.WriteHeader(c, port); err != nil {
		return nil, err
	}
	if err := mux.ReadReply(c); err != nil {
		return nil, err
	}
	if !stop() {
		return nil, ctx.Err()
	}
	return c, nil
}

// conn makes a yamux stream behave as a net.Conn should: Close returns at once and ends pending reads, and the end of
// the session is an error and not an orderly end of the stream.
type conn struct {
	*yamux.Stream
	session *yamux.Session
	closed  atomic.Bool
}

func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Stream.Read(p)
	return n, c.explain(err)
}

func (c *conn) Write(p []byte) (int, error) {
	n, err := c.Stream.Write(p)
	return n, c.explain(err)
}

func (c *conn) explain(err error) error {
	switch {
	case err == nil:
		return nil
	case c.closed.Load():
		return net.ErrClosed
	case c.session.IsClosed() && (errors.Is(err, io.EOF) || errors.Is(err, yamux.ErrSessionShutdown) ||
		errors.Is(err, yamux.ErrStreamClosed) || errors.Is(err, yamux.ErrConnectionReset)):
		return errChannelGone
	}
	return err
}

// Close implements net.Conn. The farewell is sent aside: a guest that reads nothing must not hold its caller up.
func (c *conn) Close() error {
	if c.closed.Swap(true) {
		return nil
	}
	_ = c.SetReadDeadline(time.Unix(1, 0))
	go func() { _ = c.Stream.Close() }()
	return nil
}
