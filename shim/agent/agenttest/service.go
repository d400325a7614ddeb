package agenttest

import (
	"context"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"

	agentpb "github.com/coffer-project/coffer/proto/agent"
	guestpullpb "github.com/coffer-project/coffer/proto/guestpull/v1"
	typespb "github.com/coffer-project/coffer/proto/types"
)

// implemented lists the methods of service and of the other services; all others answer "unimplemented".
var implemented = map[string]bool{
	"Check": true, "Version": true, "GetBootReport": true, "GetPullReport": true, "GetContainerUser": true, "WaitPull": true,
	"CreateSandbox": true, "DestroySandbox": true, "GetGuestDetails": true, "GetOOMEvent": true, "SetPolicy": true,
	"SetGuestDateTime": true, "ReseedRandomDev": true, "UpdateInterface": true, "UpdateRoutes": true, "AddARPNeighbors": true,
	"CopyFile": true, "RemoveFiles": true, "GetDiagnosticData": true, "CreateContainer": true, "StartContainer": true, "RemoveContainer": true, "UpdateContainer": true,
	"PauseContainer": true, "ResumeContainer": true, "StatsContainer": true, "ExecProcess": true, "SignalProcess": true,
	"WaitProcess": true, "TtyWinResize": true, "WriteStdin": true, "CloseStdin": true, "ReadStdout": true, "ReadStderr": true,
}

type container struct {
	init  *Process
	execs map[string]*Process
}

// service holds the fake's containers and files. The embedded interface is nil: intercept refuses the methods that are
// not written out here.
type service struct {
	agentpb.AgentServiceService

	life   context.Context // ends with the fake, so that no call outlives it
	cancel context.CancelFunc
	oom    chan string
	pulls  chan *guestpullpb.PullProgress
	// features are Coffer's own that the guest offers.
	features []string
	stock    bool

	mu         sync.Mutex
	user       *guestpullpb.ContainerUser // of every container
	containers map[string]*container
	files      map[string]File
	last       map[string]string // termination messages
}

func newService() *service {
	life, cancel := context.WithCancel(context.Background())
	return &service{
		life: life, cancel: cancel, user: &guestpullpb.ContainerUser{}, oom: make(chan string, 16), pulls: make(chan *guestpullpb.PullProgress),
		containers: make(map[string]*container), files: make(map[string]File), last: make(map[string]string),
	}
}

func (s *service) close() { s.cancel() }

// OOM lets the guest report a container's loss of a process to the kernel's OOM killer.
func (g *Guest) OOM(containerID string) { g.service.oom <- containerID }

// Progress answers the next question for news of a pull, once there is one or ctx ends.
func (g *Guest) Progress(ctx context.Context, news *guestpullpb.PullProgress) error {
	select {
	case g.service.pulls <- news:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Process returns a process to steer; execID is empty for the container's first. ErrNotFound before it was created.
func (g *Guest) Process(containerID, execID string) (*Process, error) {
	return g.service.find(containerID, execID)
}

func (s *service) find(containerID, execID string) (*Process, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.containers[containerID]
	if !ok {
		return nil, fmt.Errorf("container %s: %w", containerID, errdefs.ErrNotFound)
	}
	if execID == "" || execID == containerID {
		return c.init, nil
	}
	p, ok := c.execs[execID]
	if !ok {
		return nil, fmt.Errorf("exec %s of container %s: %w", execID, containerID, errdefs.ErrNotFound)
	}
	return p, nil
}

func (s *service) CreateContainer(_ context.Context, req *agentpb.CreateContainerRequest) (*emptypb.Empty, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := req.GetContainerId()
	if _, ok := s.containers[id]; ok {
		return nil, fmt.Errorf("container %s: %w", id, errdefs.ErrAlreadyExists)
	}
	s.containers[id] = &container{init: newProcess(), execs: make(map[string]*Process)}
	return &emptypb.Empty{}, nil
}

func (s *service) StartContainer(_ context.Context, req *agentpb.StartContainerRequest) (*emptypb.Empty, error) {
	p, err := s.find(req.GetContainerId(), "")
	if err != nil {
		return nil, err
	}
	p.start()
	return &emptypb.Empty{}, nil
}

func (s *service) RemoveContainer(_ context.Context, req *agentpb.RemoveContainerRequest) (*emptypb.Empty, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.containers[req.GetContainerId()]
	if !ok {
		return nil, fmt.Errorf("container %s: %w", req.GetContainerId(), errdefs.ErrNotFound)
	}
	delete(s.containers, req.GetContainerId())
	c.init.Exit(128 + int32(unix.SIGKILL))
	for _, p := range c.execs {
		p.Exit(128 + int32(unix.SIGKILL))
	}
	return &emptypb.Empty{}, nil
}

func (s *service) ExecProcess(_ context.Context, req *agentpb.ExecProcessRequest) (*emptypb.Empty, error) {
	first, err := s.find(req.GetContainerId(), "")
	if err != nil {
		return nil, err
	}
	if !first.running() {
		return nil, fmt.Errorf("container %s does not run: %w", req.GetContainerId(), errdefs.ErrFailedPrecondition)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p := newProcess()
	s.containers[req.GetContainerId()].execs[req.GetExecId()] = p
	p.start()
	return &emptypb.Empty{}, nil
}

func (s *service) SignalProcess(_ context.Context, req *agentpb.SignalProcessRequest) (*emptypb.Empty, error) {
	p, err := s.find(req.GetContainerId(), req.GetExecId())
	if err != nil {
		return nil, err
	}
	if !p.running() {
		return nil, fmt.Errorf("process of container %s does not run: %w", req.GetContainerId(), errdefs.ErrNotFound)
	}
	if signal := req.GetSignal(); signal == uint32(unix.SIGKILL) || signal == uint32(unix.SIGTERM) {
		p.Exit(128 + int32(signal))
	}
	return &emptypb.Empty{}, nil
}

func (s *service) WaitProcess(ctx context.Context, req *agentpb.WaitProcessRequest) (*agentpb.WaitProcessResponse, error) {
	p, err := s.find(req.GetContainerId(), req.GetExecId())
	if err != nil {
		return nil, err
	}
	ctx, stop := s.bound(ctx)
	defer stop()
	status, err := p.wait(ctx)
	return &agentpb.WaitProcessResponse{Status: status}, err
}

func (s *service) ReadStdout(ctx context.Context, req *agentpb.ReadStreamRequest) (*agentpb.ReadStreamResponse, error) {
	return s.readStream(ctx, req, func(p *Process) *pipe { return p.stdout })
}

func (s *service) ReadStderr(ctx context.Context, req *agentpb.ReadStreamRequest) (*agentpb.ReadStreamResponse, error) {
	return s.readStream(ctx, req, func(p *Process) *pipe { return p.stderr })
}

func (s *service) readStream(
	ctx context.Context, req *agentpb.ReadStreamRequest, stream func(*Process) *pipe,
) (*agentpb.ReadStreamResponse, error) {
	p, err := s.find(req.GetContainerId(), req.GetExecId())
	if err != nil {
		return nil, err
	}
	ctx, stop := s.bound(ctx)
	defer stop()
	data, err := stream(p).read(ctx, int(req.GetLen()))
	return &agentpb.ReadStreamResponse{Data: data}, err
}

func (s *service) WriteStdin(_ context.Context, req *agentpb.WriteStreamRequest) (*agentpb.WriteStreamResponse, error) {
	p, err := s.find(req.GetContainerId(), req.GetExecId())
	if err != nil {
		return nil, err
	}
	p.writeStdin(req.GetData())
	return &agentpb.WriteStreamResponse{Len: uint32(len(req.GetData()))}, nil
}

func (s *service) CloseStdin(_ context.Context, req *agentpb.CloseStdinRequest) (*emptypb.Empty, error) {
	p, err := s.find(req.GetContainerId(), req.GetExecId())
	if err != nil {
		return nil, err
	}
	p.closeStdin()
	return &emptypb.Empty{}, nil
}

func (s *service) GetOOMEvent(ctx context.Context, _ *agentpb.GetOOMEventRequest) (*agentpb.OOMEvent, error) {
	ctx, stop := s.bound(ctx)
	defer stop()
	select {
	case id := <-s.oom:
		return &agentpb.OOMEvent{ContainerId: id}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s *service) UpdateInterface(_ context.Context, req *agentpb.UpdateInterfaceRequest) (*typespb.Interface, error) {
	return req.GetInterface(), nil
}

func (s *service) UpdateRoutes(_ context.Context, req *agentpb.UpdateRoutesRequest) (*agentpb.Routes, error) {
	return req.GetRoutes(), nil
}

func (s *service) StatsContainer(_ context.Context, req *agentpb.StatsContainerRequest) (*agentpb.StatsContainerResponse, error) {
	if _, err := s.find(req.GetContainerId(), ""); err != nil {
		return nil, err
	}
	return &agentpb.StatsContainerResponse{CgroupStats: &agentpb.CgroupStats{
		MemoryStats: &agentpb.MemoryStats{Usage: &agentpb.MemoryData{Usage: 1 << 20}},
		PidsStats:   &agentpb.PidsStats{Current: 1},
	}}, nil
}

func (s *service) GetGuestDetails(context.Context, *agentpb.GuestDetailsRequest) (*agentpb.GuestDetailsResponse, error) {
	return &agentpb.GuestDetailsResponse{AgentDetails: &agentpb.AgentDetails{
		Version: Version, InitDaemon: true, ExtraFeatures: s.features,
	}}, nil
}

func (s *service) GetBootReport(context.Context, *guestpullpb.GetBootReportRequest) (*guestpullpb.BootReport, error) {
	return &guestpullpb.BootReport{Phases: []*guestpullpb.Phase{{Name: "kernel", Micros: 1000}}}, nil
}

func (s *service) GetPullReport(_ context.Context, req *guestpullpb.GetPullReportRequest) (*guestpullpb.PullReport, error) {
	if _, err := s.find(req.GetContainerId(), ""); err != nil {
		return nil, err
	}
	return &guestpullpb.PullReport{Reference: "example.com/app:1"}, nil
}

func (s *service) GetContainerUser(_ context.Context, req *guestpullpb.GetContainerUserRequest) (*guestpullpb.ContainerUser, error) {
	if _, err := s.find(req.GetContainerId(), ""); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.user, nil
}

func (s *service) WaitPull(ctx context.Context, _ *guestpullpb.WaitPullRequest) (*guestpullpb.PullProgress, error) {
	ctx, stop := s.bound(ctx)
	defer stop()
	select {
	case news := <-s.pulls:
		return news, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// bound ends a call with the fake itself.
func (s *service) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.life, cancel)
	return ctx, func() {
		stop()
		cancel()
	}
}
