package agent

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"

	agentpb "github.com/coffer-project/coffer/proto/agent"
	guestpullpb "github.com/coffer-project/coffer/proto/guestpull/v1"
	healthpb "github.com/coffer-project/coffer/proto/health"
	"github.com/coffer-project/coffer/proto/mux"
)

// DialFunc opens a stream to a port of the guest. It waits for the guest until ctx ends.
type DialFunc func(ctx context.Context, port uint32) (net.Conn, error)

// Options tune a Client; the zero value is usable.
type Options struct {
	// Port is where the agent listens; 0 means mux.AgentPort.
	Port uint32
	// ConnectTimeout bounds Connect: waiting for the guest and its first answer. 0 means DefaultConnectTimeout.
	ConnectTimeout time.Duration
	// CallTimeout bounds the calls that need no more than the guest's attention. 0 means DefaultCallTimeout.
	CallTimeout time.Duration
	// CreateTimeout bounds CreateContainer, which includes the image pull. 0 means DefaultCreateTimeout.
	CreateTimeout time.Duration
}

// Defaults of Options.
const (
	DefaultConnectTimeout = 2 * time.Minute
	DefaultCallTimeout    = time.Minute
	DefaultCreateTimeout  = 20 * time.Minute
)

func (o Options) withDefaults() Options {
	if o.Port == 0 {
		o.Port = mux.AgentPort
	}
	if o.ConnectTimeout == 0 {
		o.ConnectTimeout = DefaultConnectTimeout
	}
	if o.CallTimeout == 0 {
		o.CallTimeout = DefaultCallTimeout
	}
	if o.CreateTimeout == 0 {
		o.CreateTimeout = DefaultCreateTimeout
	}
	return o
}

// Client is a connection to the agent. All methods of the AgentService are its own, each with the deadline of its
// method and errors of errdefs classes; a lost connection is errdefs.ErrUnavailable. A call whose ctx ends returns at
// once, but the guest goes on with it: who gives up a CreateContainer must remove the container.
//
// Methods are safe for concurrent use.
type Client struct {
	agentpb.AgentServiceService

	conn        *ttrpc.Client
	health      healthpb.HealthService
	diagnostics guestpullpb.DiagnosticsService
	progress    guestpullpb.ProgressService
	files       guestpullpb.FilesService
	done        chan struct{}
	version     string
}

// Connect dials the agent and waits for its first answer. It fails with errdefs.ErrUnavailable when the guest goes
// away or reports that it is not serving, and with context.DeadlineExceeded when it does not answer in time.
func Connect(ctx context.Context, dial DialFunc, opts Options) (_ *Client, retErr error) {
	opts = opts.withDefaults()
	ctx, cancel := context.WithTimeout(ctx, opts.ConnectTimeout)
	defer cancel()

	raw, err := dial(ctx, opts.Port)
	if err != nil {
		return nil, fmt.Errorf("dial guest agent on port %d: %w", opts.Port, err)
	}
	c := newClient(raw, opts)
	defer func() {
		if retErr != nil {
			_ = c.Close()
		}
	}()

	if err := c.Check(ctx); err != nil {
		return nil, err
	}
	version, err := c.health.Version(ctx, &healthpb.CheckRequest{})
	if err != nil {
		return nil, fmt.Errorf("ask guest agent for its version: %w", err)
	}
	c.version = version.GetAgentVersion()
	log.G(ctx).WithField("agent_version", c.version).Debug("guest agent connected")
	return c, nil
}

func newClient(raw net.Conn, opts Options) *Client {
	done := make(chan struct{})
	conn := ttrpc.NewClient(raw,
		ttrpc.WithOnClose(func() { close(done) }),
		ttrpc.WithUnaryClientInterceptor(deadlines{call: opts.CallTimeout, create: opts.CreateTimeout}.intercept),
	)
	return &Client{
		AgentServiceService: agentpb.NewAgentServiceClient(conn),
		conn:                conn,
		health:              healthpb.NewHealthClient(conn),
		diagnostics:         guestpullpb.NewDiagnosticsClient(conn),
		progress:            guestpullpb.NewProgressClient(conn),
		files:               guestpullpb.NewFilesClient(conn),
		done:                done,
	}
}

// Agent returns the AgentService as its interface, for callers that want no more than that.
func (c *Client) Agent() agentpb.AgentServiceService { return c.AgentServiceService }

// Version is what the agent answered at Connect.
func (c *Client) Version() string { return c.version }

// Check asks the agent whether it serves; errdefs.ErrUnavailable when it says no.
func (c *Client) Check(ctx context.Context) error {
	resp, err := c.health.Check(ctx, &healthpb.CheckRequest{})
	if err != nil {
		return fmt.Errorf("check health of guest agent: %w", err)
	}
	if status := resp.GetStatus(); status != healthpb.HealthCheckResponse_SERVING {
		return fmt.Errorf("guest agent reports %s: %w", status, errdefs.ErrUnavailable)
	}
	return nil
}

// Done is closed once the connection is gone, by Close or because the guest went away.
func (c *Client) Done() <-chan struct{} { return c.done }

// Close drops the connection; calls in flight fail with errdefs.ErrUnavailable. It is idempotent.
func (c *Client) Close() error { return c.conn.Close() }
