package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"

	"github.com/coffer-project/coffer/guestpull/container/origin"
	"github.com/coffer-project/coffer/guestpull/container/rootfs"
	"github.com/coffer-project/coffer/guestpull/image"
	agentpb "github.com/coffer-project/coffer/proto/agent"
	guestpb "github.com/coffer-project/coffer/proto/guestpull/v1"
	healthpb "github.com/coffer-project/coffer/proto/health"
	typespb "github.com/coffer-project/coffer/proto/types"
)

// Lifecycle creates, changes and removes containers.
type Lifecycle interface {
	Create(ctx context.Context, req *agentpb.CreateContainerRequest) error
	Start(ctx context.Context, id string) error
	Update(ctx context.Context, req *agentpb.UpdateContainerRequest) error
	Remove(ctx context.Context, id string, timeout time.Duration) error
	RemoveAll(ctx context.Context) error
}

// Freezer stops containers and lets them go on.
type Freezer interface {
	Pause(ctx context.Context, id string) error
	Resume(ctx context.Context, id string) error
}

// Processes runs and ends processes.
type Processes interface {
	Exec(ctx context.Context, req *agentpb.ExecProcessRequest) error
	Signal(ctx context.Context, id, execID string, signal uint32) error
	Wait(ctx context.Context, id, execID string) (int32, error)
}

// Streams moves the data of standard streams.
type Streams interface {
	Read(ctx context.Context, id, execID string, stderr bool, limit uint32) ([]byte, error)
	Write(ctx context.Context, id, execID string, data []byte) (uint32, error)
	CloseStdin(id, execID string) error
	Resize(id, execID string, rows, columns uint32) error
}

// Reports tells about containers.
type Reports interface {
	Stats(ctx context.Context, id string) (*agentpb.CgroupStats, error)
	PullReport(id string) (*image.Report, error)
	User(id string) (rootfs.User, error)
	ProcessOrigin(id string) (*origin.Process, error)
	TerminationLog(id string) ([]byte, error)
}

// Containers is all of that; package container's Manager is one.
type Containers interface {
	Lifecycle
	Freezer
	Processes
	Streams
	Reports
}

// Pulls tells how far image pulls have come.
type Pulls interface {
	Wait(ctx context.Context, containerID string, seen uint64) (*image.Progress, error)
}

// Sandbox is the pod.
type Sandbox interface {
	Create(ctx context.Context, req *agentpb.CreateSandboxRequest) error
	Destroy(ctx context.Context) error
	NextOOM(ctx context.Context) (string, error)
}

// Network sets up the guest's network.
type Network interface {
	UpdateInterface(ctx context.Context, wanted *typespb.Interface) (*typespb.Interface, error)
	UpdateRoutes(ctx context.Context, wanted []*typespb.Route) ([]*typespb.Route, error)
	ListInterfaces(ctx context.Context) ([]*typespb.Interface, error)
	ListRoutes(ctx context.Context) ([]*typespb.Route, error)
	AddNeighbors(ctx context.Context, wanted []*typespb.ARPNeighbor) error
}

// Files takes files of the pod from the host.
type Files interface {
	CopyFile(ctx context.Context, req *agentpb.CopyFileRequest) error
	RemoveFiles(ctx context.Context, req *guestpb.RemoveFilesRequest) error
}

// Policy decides about requests; package policy's engines are such.
type Policy interface {
	Allow(ctx context.Context, method string, request proto.Message) error
}

// Phase is a step of the guest's start and how long it took.
type Phase struct {
	Name string
	Took time.Duration
}

// Options are the parts that a server hands calls to; all are needed.
type Options struct {
	Containers Containers
	Pulls      Pulls
	Sandbox    Sandbox
	Network    Network
	Files      Files
	Policy     Policy
	// Complete waits until the guest's start is complete; calls that need more than the agent itself wait for it.
	Complete func(context.Context) error
	// BootPhases returns the steps of the guest's start.
	BootPhases func() []Phase
	// Figures reports further figures of the guest for its metrics; nil for none.
	Figures func(gauge func(name, value string))
	// AgentVersion is for the health service.
	AgentVersion string
	// Init tells whether the agent is the guest's first process.
	Init bool
	// Forwards tells whether ServeForwards will be called.
	Forwards bool
	// Scratch: the guest can use a scratch disk, and keeps volumes of the kind local on it.
	Scratch bool
}

// Server serves the control channel.
type Server struct {
	ttrpc *ttrpc.Server
	gate  gate
}

// service implements all services. Its methods are in the files named after what they are about.
type service struct {
	Options
}

var (
	_ agentpb.AgentServiceService = (*service)(nil)
	_ healthpb.HealthService      = (*service)(nil)
	_ guestpb.DiagnosticsService  = (*service)(nil)
	_ guestpb.ProgressService     = (*service)(nil)
	_ guestpb.FilesService        = (*service)(nil)
)

// New returns a server that does not listen yet.
func New(o Options) (*Server, error) {
	if o.Containers == nil || o.Pulls == nil || o.Sandbox == nil || o.Network == nil || o.Files == nil || o.Policy == nil || o.Complete == nil || o.BootPhases == nil {
		return nil, errors.New("agent server lacks a part")
	}
	g := gate{engine: o.Policy, complete: o.Complete}
	srv, err := ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(g.intercept))
	if err != nil {
		return nil, fmt.Errorf("make agent server: %w", err)
	}
	s := &service{Options: o}
	agentpb.RegisterAgentServiceService(srv, s)
	healthpb.RegisterHealthService(srv, s)
	guestpb.RegisterDiagnosticsService(srv, s)
	guestpb.RegisterProgressService(srv, s)
	guestpb.RegisterFilesService(srv, s)
	return &Server{ttrpc: srv, gate: g}, nil
}

// Serve answers calls on the listener until it or the server is closed. It returns ttrpc.ErrServerClosed after Close.
func (s *Server) Serve(ctx context.Context, l net.Listener) error { return s.ttrpc.Serve(ctx, l) }

// Close ends all connections at once.
func (s *Server) Close() error { return s.ttrpc.Close() }
