package forward

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/coffer-project/coffer/proto/forward"
	"github.com/coffer-project/coffer/proto/mux"
)

const (
	// maxConnections bounds what a pod's forwarded connections cost the shim: each may hold two buffers, and in the
	// channel to the guest a window of 1 MiB while its client does not read.
	maxConnections = 128
	// openTimeout bounds how long the guest may take to open its half of a connection.
	openTimeout = 30 * time.Second
	// halfIdle bounds the silence on a connection that one side has ended.
	halfIdle = 5 * time.Minute
	// acceptPause follows an Accept that failed for want of something, such as file descriptors.
	acceptPause = 100 * time.Millisecond
)

// DialFunc opens a stream to a port of the guest's control channel. It waits for a listener there until ctx ends.
type DialFunc func(ctx context.Context, port uint32) (net.Conn, error)

// Forwarder relays connections to the loopback of one pod's network namespace into the guest.
type Forwarder struct {
	dial   DialFunc
	listen *listening
	cancel context.CancelFunc
	places chan struct{}
	work   sync.WaitGroup
}

// Start forwards connections to the loopback of the namespace at path, through streams that dial opens, until Close. It
// fails with errdefs.ErrFailedPrecondition when the kernel does not offer what it needs, and with errdefs.ErrNotFound
// when the namespace is gone. ctx bounds Start alone.
func Start(ctx context.Context, path string, dial DialFunc) (*Forwarder, error) {
	l, err := listen(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("forward ports of pod network %s: %w", path, err)
	}
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	f := &Forwarder{dial: dial, listen: l, cancel: cancel, places: make(chan struct{}, maxConnections)}
	for _, listener := range l.listeners {
		f.work.Go(func() { f.accept(life, listener) })
	}
	return f, nil
}

// Close resets all connections and leaves nothing behind. It is idempotent.
func (f *Forwarder) Close() error {
	err := f.listen.Close()
	f.cancel()
	f.work.Wait()
	return err
}

func (f *Forwarder) accept(ctx context.Context, listener *net.TCPListener) {
	for {
		conn, err := listener.AcceptTCP()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			log.G(ctx).WithError(err).Warn("forwarded connection was not accepted")
			select {
			case <-ctx.Done():
				return
			case <-time.After(acceptPause):
			}
			continue
		}
		select {
		case f.places <- struct{}{}:
			f.work.Go(func() {
				defer func() { <-f.places }()
				f.serve(ctx, conn)
			})
		default:
			forward.Reset(conn)
			log.G(ctx).WithField("limit", maxConnections).Warn("forwarded connection was reset: the pod has too many")
		}
	}
}

// serve relays one connection. Its local address is the one that the client asked for, although the listener has another.
func (f *Forwarder) serve(ctx context.Context, conn *net.TCPConn) {
	port := uint16(conn.LocalAddr().(*net.TCPAddr).Port)
	logger := log.G(ctx).WithField("port", port)
	stream, err := f.open(ctx, port)
	if err != nil {
		forward.Reset(conn)
		if ctx.Err() == nil {
			logger.WithError(err).Info("forwarded connection was reset")
		}
		return
	}
	if err := forward.Relay(ctx, conn, stream, halfIdle); err != nil && ctx.Err() == nil {
		logger.WithError(err).Debug("forwarded connection broke off")
	}
}

// open asks the guest for its half of a connection.
func (f *Forwarder) open(ctx context.Context, port uint16) (_ net.Conn, retErr error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	stream, err := f.dial(ctx, mux.ForwardPort)
	if err != nil {
		return nil, fmt.Errorf("open stream to guest: %w", err)
	}
	defer func() {
		if retErr != nil {
			stream.Close()
		}
	}()
	stop := context.AfterFunc(ctx, func() { _ = stream.SetDeadline(time.Unix(1, 0)) })
	if err := forward.Ask(stream, port); err != nil {
		return nil, err
	}
	if !stop() {
		return nil, fmt.Errorf("guest answered too late: %w", errdefs.ErrUnavailable)
	}
	return stream, nil
}
