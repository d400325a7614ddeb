package server

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/coffer-project/coffer/proto/forward"
)

const (
	// forwardMethod is what policies know the opening of a forwarded connection by.
	forwardMethod = "Forward"
	// maxForwards bounds what forwarded connections cost the guest: two buffers each, and a window of 1 MiB that the host may fill.
	maxForwards = 128
	// maxRefusals bounds the requests beyond that which get an answer; more are hung up on.
	maxRefusals = 16
	// forwardOpenTimeout bounds how long the host may take to name a port, and then each attempt to connect to it.
	forwardOpenTimeout = 30 * time.Second
	// forwardRefuseTimeout bounds what a request beyond the limit still gets of the guest's time.
	forwardRefuseTimeout = 5 * time.Second
	// forwardHalfIdle bounds the silence on a connection that one side has ended.
	forwardHalfIdle = 5 * time.Minute
)

// loopbacks are what localhost may mean to the pod's servers. The guest tries both, because a client on the host has no second try:
// its own connection to either of them has succeeded already.
var loopbacks = [2]string{"127.0.0.1", "::1"}

// ServeForwards answers streams on the listener, each a connection to a port on the pod's loopback, until the listener is closed or
// ctx ends. Then it ends all connections. Other addresses cannot be reached by it.
func (s *Server) ServeForwards(ctx context.Context, l net.Listener) {
	ctx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	places, refusals := make(chan struct{}, maxForwards), make(chan struct{}, maxRefusals)
	for {
		stream, err := l.Accept()
		if err != nil {
			log.G(ctx).WithError(err).Info("connections are not forwarded any more")
			return
		}
		select {
		case places <- struct{}{}:
			work.Go(func() {
				defer func() { <-places }()
				s.forward(ctx, stream)
			})
			continue
		default:
		}
		select {
		case refusals <- struct{}{}:
			work.Go(func() {
				defer func() { <-refusals }()
				s.refuseForward(ctx, stream)
			})
		default:
			_ = stream.Close()
		}
	}
}

// forward serves one stream.
func (s *Server) forward(ctx context.Context, stream net.Conn) {
	fields := log.Fields{"method": forwardMethod}
	conn, err := s.openForward(ctx, stream, fields)
	err = s.gate.record(ctx, forwardMethod, fields, err)
	// A yamux stream's deadline cannot fail to be set; another one's failure shows when it is written to.
	_ = stream.SetDeadline(time.Now().Add(forwardOpenTimeout))
	answerErr := forward.Answer(stream, err)
	_ = stream.SetDeadline(time.Time{})
	if err != nil || answerErr != nil {
		if conn != nil {
			forward.Reset(conn)
		}
		_ = stream.Close()
		return
	}
	if err := forward.Relay(ctx, conn, stream, forwardHalfIdle); err != nil {
		log.G(ctx).WithError(err).Debug("forwarded connection broke off")
	}
}

// openForward reads the host's request, lets the gate decide about it, and connects. Unavailable: nobody listens on the port.
func (s *Server) openForward(ctx context.Context, stream net.Conn, fields log.Fields) (*net.TCPConn, error) {
	_ = stream.SetDeadline(time.Now().Add(forwardOpenTimeout))
	request, err := forward.ReadRequest(stream)
	if err != nil {
		return nil, err
	}
	fields["port"] = request.GetPort()
	if err := s.gate.admit(ctx, forwardMethod, request, fields); err != nil {
		return nil, err
	}
	port := strconv.FormatUint(uint64(request.GetPort()), 10)
	dialer := &net.Dialer{Timeout: forwardOpenTimeout}
	var faults [len(loopbacks)]error
	for i, address := range loopbacks {
		conn, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(address, port))
		if err == nil {
			return conn.(*net.TCPConn), nil
		}
		faults[i] = err
	}
	return nil, fmt.Errorf("nothing in the pod takes connections to localhost:%s (%w; %w): %w", port, faults[0], faults[1], errdefs.ErrUnavailable)
}

// refuseForward answers a request that comes beyond the limit. The request is read all the same: some channels lose an answer that a
// close with unread data follows.
func (s *Server) refuseForward(ctx context.Context, stream net.Conn) {
	defer stream.Close()
	_ = stream.SetDeadline(time.Now().Add(forwardRefuseTimeout))
	if _, err := forward.ReadRequest(stream); err != nil {
		return
	}
	err := s.gate.record(ctx, forwardMethod, log.Fields{"method": forwardMethod},
		fmt.Errorf("%d connections are forwarded already: %w", maxForwards, errdefs.ErrResourceExhausted))
	_ = forward.Answer(stream, err)
}
