// Package agenttest is a fake guest for tests of the shim: an agent over ttrpc in memory, whose containers are steered
// by the test. It answers as Kata's agent does, keeps what it was asked, and fails on request.
package agenttest

import (
	"context"
	"errors"
	"net"
	"path"
	"slices"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"

	agentpb "github.com/coffer-project/coffer/proto/agent"
	"github.com/coffer-project/coffer/proto/forward"
	guestpullpb "github.com/coffer-project/coffer/proto/guestpull/v1"
	healthpb "github.com/coffer-project/coffer/proto/health"
	"github.com/coffer-project/coffer/proto/mux"
)

// Version is what the fake answers as its version.
const Version = "fake-1"

// Call is one request that the guest received.
type Call struct {
	Method  string
	Request proto.Message
}

// Guest is a fake guest. Its methods are safe for concurrent use.
type Guest struct {
	listener *listener
	service  *service

	mu      sync.Mutex
	calls   []Call
	changed chan struct{}
	faults  map[string]func(context.Context) error
	conns   []net.Conn
}

// Option changes a Guest before it serves.
type Option func(*config)

type config struct {
	stock bool
}

// WithStockAgent leaves out what a stock Kata guest does not have: Coffer's own services.
func WithStockAgent() Option { return func(c *config) { c.stock = true } }

// New serves a guest until the test ends.
func New(tb testing.TB, opts ...Option) *Guest {
	tb.Helper()
	var c config
	for _, opt := range opts {
		opt(&c)
	}
	g := &Guest{
		listener: newListener(),
		service:  newService(),
		changed:  make(chan struct{}),
		faults:   make(map[string]func(context.Context) error),
	}
	g.service.stock = c.stock
	server, err := ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(g.intercept))
	if err != nil {
		tb.Fatalf("make fake guest: %v", err)
	}
	agentpb.RegisterAgentServiceService(server, g.service)
	healthpb.RegisterHealthService(server, healthService{})
	if !c.stock {
		g.service.features = []string{forward.Feature}
		guestpullpb.RegisterDiagnosticsService(server, g.service)
		guestpullpb.RegisterProgressService(server, g.service)
		guestpullpb.RegisterFilesService(server, g.service)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(ctx, g.listener)
	}()
	tb.Cleanup(func() {
		cancel()
		g.service.close()
		_ = server.Close()
		g.Drop()
		<-served
	})
	return g
}

// Dial connects to the agent; it is the dial function that the shim takes. Any other port is unavailable.
func (g *Guest) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	if port != mux.AgentPort {
		return nil, mux.ErrNoListener
	}
	host, guest := net.Pipe()
	if err := g.listener.offer(ctx, guest); err != nil {
		return nil, err
	}
	g.mu.Lock()
	g.conns = append(g.conns, guest)
	g.mu.Unlock()
	return host, nil
}

// Drop breaks all connections, as a dying VM does. New ones are possible.
func (g *Guest) Drop() {
	g.mu.Lock()
	conns := g.conns
	g.conns = nil
	g.mu.Unlock()
	for _, conn := range conns {
		_ = conn.Close()
	}
}

// Fail makes every following call of method end with err, nil ends that. The error reaches the client as RPC status.
func (g *Guest) Fail(method string, err error) {
	if err == nil {
		g.Intercept(method, nil)
		return
	}
	g.Intercept(method, func(context.Context) error { return err })
}

// Intercept runs fault before every following call of method; an error that it returns is the call's answer, nil lets
// the call through. A fault that waits for its ctx makes a guest that hangs. A nil fault ends the interception.
func (g *Guest) Intercept(method string, fault func(context.Context) error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if fault == nil {
		delete(g.faults, method)
		return
	}
	g.faults[method] = fault
}

// RunAs is who the guest says that its containers run as, from now on; before it is the super-user.
func (g *Guest) RunAs(user *guestpullpb.ContainerUser) {
	g.service.mu.Lock()
	defer g.service.mu.Unlock()
	g.service.user = user
}

// Calls returns what was asked so far, in order of arrival. With methods, only calls of these.
func (g *Guest) Calls(methods ...string) []Call {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.selectCalls(methods)
}

func (g *Guest) selectCalls(methods []string) []Call {
	var out []Call
	for _, call := range g.calls {
		if len(methods) == 0 || slices.Contains(methods, call.Method) {
			out = append(out, call)
		}
	}
	return out
}

// WaitCall returns once method has been called at least n times, with the n-th of these calls.
func (g *Guest) WaitCall(ctx context.Context, method string, n int) (Call, error) {
	for {
		g.mu.Lock()
		calls, changed := g.selectCalls([]string{method}), g.changed
		g.mu.Unlock()
		if len(calls) >= n {
			return calls[n-1], nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return Call{}, ctx.Err()
		}
	}
}

func (g *Guest) record(call Call) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.calls = append(g.calls, call)
	close(g.changed)
	g.changed = make(chan struct{})
}

// intercept records, fails on request, refuses what the fake does not do, and converts errors as a real agent does.
func (g *Guest) intercept(
	ctx context.Context, unmarshal ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, method ttrpc.Method,
) (any, error) {
	name := path.Base(info.FullMethod)
	g.mu.Lock()
	fault := g.faults[name]
	g.mu.Unlock()
	recorded := func(message any) error {
		if err := unmarshal(message); err != nil {
			return err
		}
		if m, ok := message.(proto.Message); ok {
			g.record(Call{Method: name, Request: proto.Clone(m)})
		}
		if fault != nil {
			return fault(ctx)
		}
		if !implemented[name] {
			return errdefs.ErrNotImplemented
		}
		return nil
	}
	resp, err := method(ctx, recorded)
	return resp, errgrpc.ToGRPC(err)
}

type healthService struct{}

func (healthService) Check(context.Context, *healthpb.CheckRequest) (*healthpb.HealthCheckResponse, error) {
	return &healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_SERVING}, nil
}

func (healthService) Version(context.Context, *healthpb.CheckRequest) (*healthpb.VersionCheckResponse, error) {
	return &healthpb.VersionCheckResponse{GrpcVersion: "0.0.1", AgentVersion: Version}, nil
}

// listener hands connections made in memory to the server.
type listener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

var errListenerClosed = errors.New("fake guest is closed")

func newListener() *listener {
	return &listener{conns: make(chan net.Conn), done: make(chan struct{})}
}

func (l *listener) offer(ctx context.Context, conn net.Conn) error {
	select {
	case l.conns <- conn:
		return nil
	case <-l.done:
		return errListenerClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.done:
		return nil, errListenerClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *listener) Addr() net.Addr { return &net.UnixAddr{Name: "fake-guest", Net: "unix"} }
