package sandbox

import (
	"context"
	"fmt"
	goruntime "runtime"
	"time"

	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	"github.com/containerd/containerd/api/types"
	ctrdnamespaces "github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// The states that CRI knows, by the names of its enum.
const (
	criReady    = "SANDBOX_READY"
	criNotReady = "SANDBOX_NOTREADY"
)

// defaultStopTimeout bounds a stop whose request names none.
const defaultStopTimeout = 60 * time.Second

// Service serves containerd's Sandbox API for one pod. Errors are of errdefs classes; the interceptor of the plugin
// package turns them into RPC status.
type Service struct {
	pod        *Pod
	configPath string
	placed     func(stateDir string) error
	shutdown   func()
}

var _ sandboxapi.TTRPCSandboxService = (*Service)(nil)

// ServiceOptions are what a Service needs of the process that it runs in. All fields but ConfigPath are required.
type ServiceOptions struct {
	Pod *Pod
	// ConfigPath names the runtime configuration that the shim was started with; empty means the default.
	ConfigPath string
	// Placed remembers where the pod's state is.
	Placed func(stateDir string) error
	// Shutdown ends the process after the answer to the request under way has left.
	Shutdown func()
}

// NewService makes the service.
func NewService(options ServiceOptions) *Service {
	return &Service{
		pod: options.Pod, configPath: options.ConfigPath, placed: options.Placed, shutdown: options.Shutdown,
	}
}

// RegisterTTRPC implements containerd's shim.TTRPCService.
func (s *Service) RegisterTTRPC(server *ttrpc.Server) error {
	sandboxapi.RegisterTTRPCSandboxService(server, s)
	return nil
}

// CreateSandbox makes the pod from CRI's PodSandboxConfig; nothing runs yet.
func (s *Service) CreateSandbox(ctx context.Context, r *sandboxapi.CreateSandboxRequest) (*sandboxapi.CreateSandboxResponse, error) {
	config, err := ParsePodConfig(r.GetOptions())
	if err != nil {
		return nil, err
	}
	if config.Annotations == nil {
		config.Annotations = r.GetAnnotations()
	}
	openSysctls(config)
	err = s.pod.Create(ctx, Request{
		ID: r.GetSandboxID(), Namespace: namespaceOf(ctx), Bundle: r.GetBundlePath(), NetNS: r.GetNetnsPath(),
		ConfigPath: s.configPath, Config: config, OwnFiles: true, Placed: s.placed,
	})
	if err != nil {
		return nil, err
	}
	return &sandboxapi.CreateSandboxResponse{}, nil
}

// StartSandbox boots the VM and answers once the guest takes containers.
func (s *Service) StartSandbox(ctx context.Context, r *sandboxapi.StartSandboxRequest) (*sandboxapi.StartSandboxResponse, error) {
	if err := s.check(r.GetSandboxID()); err != nil {
		return nil, err
	}
	if err := s.pod.Start(ctx); err != nil {
		return nil, err
	}
	return &sandboxapi.StartSandboxResponse{Pid: s.pod.PID(), CreatedAt: timestamppb.New(s.pod.CreatedAt())}, nil
}

// Platform tells what the pod's containers run on: the guest has the host's architecture.
func (s *Service) Platform(_ context.Context, r *sandboxapi.PlatformRequest) (*sandboxapi.PlatformResponse, error) {
	if err := s.check(r.GetSandboxID()); err != nil {
		return nil, err
	}
	return &sandboxapi.PlatformResponse{Platform: &types.Platform{OS: "linux", Architecture: goruntime.GOARCH}}, nil
}

// StopSandbox ends the pod; it is idempotent.
func (s *Service) StopSandbox(ctx context.Context, r *sandboxapi.StopSandboxRequest) (*sandboxapi.StopSandboxResponse, error) {
	if err := s.check(r.GetSandboxID()); err != nil {
		return nil, err
	}
	timeout := defaultStopTimeout
	if r.GetTimeoutSecs() > 0 {
		timeout = time.Duration(r.GetTimeoutSecs()) * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := s.pod.Stop(ctx); err != nil {
		return nil, err
	}
	return &sandboxapi.StopSandboxResponse{}, nil
}

// WaitSandbox answers when the pod has ended.
func (s *Service) WaitSandbox(ctx context.Context, r *sandboxapi.WaitSandboxRequest) (*sandboxapi.WaitSandboxResponse, error) {
	if err := s.check(r.GetSandboxID()); err != nil {
		return nil, err
	}
	exit, err := s.pod.Wait(ctx)
	if err != nil {
		return nil, err
	}
	return &sandboxapi.WaitSandboxResponse{ExitStatus: exit.Status, ExitedAt: timestamppb.New(exit.At)}, nil
}

// SandboxStatus tells the pod's state, and with verbose its whole Report under InfoKey.
func (s *Service) SandboxStatus(_ context.Context, r *sandboxapi.SandboxStatusRequest) (*sandboxapi.SandboxStatusResponse, error) {
	if err := s.check(r.GetSandboxID()); err != nil {
		return nil, err
	}
	status := &sandboxapi.SandboxStatusResponse{
		SandboxID: r.GetSandboxID(), Pid: s.pod.PID(), State: criNotReady, CreatedAt: timestamppb.New(s.pod.CreatedAt()),
	}
	if s.pod.State() == StateRunning {
		status.State = criReady
	}
	if exit := s.pod.Exit(); !exit.At.IsZero() {
		status.ExitedAt = timestamppb.New(exit.At)
	}
	if !r.GetVerbose() {
		return status, nil
	}
	info, err := s.pod.info()
	if err != nil {
		return nil, err
	}
	status.Info = info
	return status, nil
}

// PingSandbox succeeds when the shim answers at all.
func (s *Service) PingSandbox(_ context.Context, r *sandboxapi.PingRequest) (*sandboxapi.PingResponse, error) {
	if err := s.check(r.GetSandboxID()); err != nil {
		return nil, err
	}
	return &sandboxapi.PingResponse{}, nil
}

// ShutdownSandbox stops the pod and then the shim. It is what containerd calls after a failed creation or start too, so
// it knows no wrong id: a shim serves nothing but its one pod.
func (s *Service) ShutdownSandbox(ctx context.Context, _ *sandboxapi.ShutdownSandboxRequest) (*sandboxapi.ShutdownSandboxResponse, error) {
	if err := s.pod.Stop(ctx); err != nil {
		return nil, err
	}
	s.shutdown()
	return &sandboxapi.ShutdownSandboxResponse{}, nil
}

// SandboxMetrics reports the sum over the pod's containers.
func (s *Service) SandboxMetrics(ctx context.Context, r *sandboxapi.SandboxMetricsRequest) (*sandboxapi.SandboxMetricsResponse, error) {
	if err := s.check(r.GetSandboxID()); err != nil {
		return nil, err
	}
	data, err := s.pod.metrics(ctx)
	if err != nil {
		return nil, err
	}
	return &sandboxapi.SandboxMetricsResponse{
		Metrics: &types.Metric{Timestamp: timestamppb.Now(), ID: r.GetSandboxID(), Data: data},
	}, nil
}

// namespaceOf is containerd's namespace of a request, empty when it has none.
func namespaceOf(ctx context.Context) string {
	namespace, _ := ctrdnamespaces.Namespace(ctx)
	return namespace
}

// check refuses requests for a pod that this shim does not serve.
func (s *Service) check(id string) error {
	if have := s.pod.ID(); have != id {
		return fmt.Errorf("sandbox %s: this shim serves %q: %w", id, have, errdefs.ErrNotFound)
	}
	return nil
}
