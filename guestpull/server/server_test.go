package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/coffer-project/coffer/guestpull/container/origin"
	"github.com/coffer-project/coffer/guestpull/container/rootfs"
	"github.com/coffer-project/coffer/guestpull/image"
	"github.com/coffer-project/coffer/guestpull/policy"
	agentpb "github.com/coffer-project/coffer/proto/agent"
	guestpb "github.com/coffer-project/coffer/proto/guestpull/v1"
	healthpb "github.com/coffer-project/coffer/proto/health"
	typespb "github.com/coffer-project/coffer/proto/types"
)

// fake answers for every part of the guest. It notes what it was asked and fails with err when that is set.
type fake struct {
	mu    sync.Mutex
	calls []string
	err   error
}

func (f *fake) note(format string, args ...any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
	return f.err
}

func (f *fake) asked() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.calls...)
}

func (f *fake) Create(_ context.Context, r *agentpb.CreateContainerRequest) error {
	return f.note("create %s", r.GetContainerId())
}
func (f *fake) Start(_ context.Context, id string) error { return f.note("start %s", id) }
func (f *fake) Update(_ context.Context, r *agentpb.UpdateContainerRequest) error {
	return f.note("update %s", r.GetContainerId())
}
func (f *fake) Remove(_ context.Context, id string, timeout time.Duration) error {
	return f.note("remove %s %s", id, timeout)
}
func (f *fake) RemoveAll(context.Context) error           { return f.note("remove all") }
func (f *fake) Pause(_ context.Context, id string) error  { return f.note("pause %s", id) }
func (f *fake) Resume(_ context.Context, id string) error { return f.note("resume %s", id) }
func (f *fake) Exec(_ context.Context, r *agentpb.ExecProcessRequest) error {
	return f.note("exec %s %s", r.GetContainerId(), r.GetExecId())
}
func (f *fake) Signal(_ context.Context, id, exec string, signal uint32) error {
	return f.note("signal %s %s %d", id, exec, signal)
}
func (f *fake) Wait(_ context.Context, id, exec string) (int32, error) {
	return 137, f.note("wait %s %s", id, exec)
}
func (f *fake) Read(_ context.Context, id, exec string, stderr bool, limit uint32) ([]byte, error) {
	return []byte("data"), f.note("read %s %s %v %d", id, exec, stderr, limit)
}
func (f *fake) Write(_ context.Context, id, exec string, data []byte) (uint32, error) {
	return uint32(len(data)), f.note("write %s %s", id, exec)
}
func (f *fake) CloseStdin(id, exec string) error { return f.note("close %s %s", id, exec) }
func (f *fake) Resize(id, exec string, rows, columns uint32) error {
	return f.note("resize %s %s %d %d", id, exec, rows, columns)
}
func (f *fake) Stats(_ context.Context, id string) (*agentpb.CgroupStats, error) {
	return &agentpb.CgroupStats{PidsStats: &agentpb.PidsStats{Current: 3}}, f.note("stats %s", id)
}
func (f *fake) PullReport(id string) (*image.Report, error) {
	return &image.Report{Reference: "ref", KeyIDs: []string{"kbs:///a/b/c"}}, f.note("report %s", id)
}
func (f *fake) User(id string) (rootfs.User, error) {
	return rootfs.User{UID: 1000, GID: 1001, Groups: []uint32{1001, 50000}}, f.note("user %s", id)
}
func (f *fake) ProcessOrigin(id string) (*origin.Process, error) {
	return &origin.Process{Args: origin.Image, Env: []origin.Variable{{Name: "A", Value: "secret", Origin: origin.Altered}}}, f.note("origin %s", id)
}
func (f *fake) TerminationLog(id string) ([]byte, error) {
	return []byte("bye\xff"), f.note("log %s", id)
}

// fakePod and the others are apart because their methods have the same names.
type fakePod struct{ *fake }

func (f fakePod) Create(_ context.Context, r *agentpb.CreateSandboxRequest) error {
	return f.note("create pod %s", r.GetSandboxId())
}
func (f fakePod) Destroy(context.Context) error           { return f.note("destroy pod") }
func (f fakePod) NextOOM(context.Context) (string, error) { return "c1", f.note("oom") }

// fakePulls is apart for the same reason.
type fakePulls struct{ *fake }

func (f fakePulls) Wait(_ context.Context, id string, seen uint64) (*image.Progress, error) {
	return &image.Progress{Serial: seen + 1, Reference: "ref", Stage: "fetch", Layers: 3, BytesFetched: 7}, f.note("wait pull %s", id)
}

func (f *fake) UpdateInterface(_ context.Context, w *typespb.Interface) (*typespb.Interface, error) {
	return w, f.note("interface %s", w.GetName())
}
func (f *fake) UpdateRoutes(_ context.Context, w []*typespb.Route) ([]*typespb.Route, error) {
	return w, f.note("routes %d", len(w))
}
func (f *fake) ListInterfaces(context.Context) ([]*typespb.Interface, error) {
	return []*typespb.Interface{{Name: "eth0"}}, f.note("list interfaces")
}
func (f *fake) ListRoutes(context.Context) ([]*typespb.Route, error) {
	return nil, f.note("list routes")
}
func (f *fake) AddNeighbors(_ context.Context, w []*typespb.ARPNeighbor) error {
	return f.note("neighbors %d", len(w))
}
func (f *fake) CopyFile(_ context.Context, r *agentpb.CopyFileRequest) error {
	return f.note("copy %s", r.GetPath())
}

func (f *fake) RemoveFiles(_ context.Context, r *guestpb.RemoveFilesRequest) error {
	return f.note("remove %s", r.GetPaths())
}

// connect serves the fake on a socket and returns a client.
func connect(t *testing.T, f *fake, engine Policy) *ttrpc.Client {
	t.Helper()
	return connectTo(t, f, engine, func(context.Context) error { return nil })
}

func connectTo(t *testing.T, f *fake, engine Policy, complete func(context.Context) error) *ttrpc.Client {
	t.Helper()
	srv, err := New(Options{
		Containers: f, Pulls: fakePulls{f}, Sandbox: fakePod{f}, Network: f, Files: f, Policy: engine, AgentVersion: "1.2.3", Init: true,
		Complete:   complete,
		BootPhases: func() []Phase { return []Phase{{Name: "ready", Took: 5 * time.Millisecond}} },
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", t.TempDir()+"/s")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(context.Background(), l) }()
	conn, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	client := ttrpc.NewClient(conn)
	t.Cleanup(func() {
		client.Close()
		srv.Close()
		if err := <-served; !errors.Is(err, ttrpc.ErrServerClosed) {
			t.Errorf("serve: %v", err)
		}
	})
	return client
}

func TestCallsReachTheirParts(t *testing.T) {
	f := &fake{}
	client := connect(t, f, policy.NewBuiltin())
	agent := agentpb.NewAgentServiceClient(client)
	ctx := t.Context()
	stdin, err := agent.WriteStdin(ctx, &agentpb.WriteStreamRequest{ContainerId: "c1", ExecId: "e1", Data: []byte("abc")})
	if err != nil || stdin.GetLen() != 3 {
		t.Errorf("write: %v, %v", stdin, err)
	}
	wait, err := agent.WaitProcess(ctx, &agentpb.WaitProcessRequest{ContainerId: "c1", ExecId: "e1"})
	if err != nil || wait.GetStatus() != 137 {
		t.Errorf("wait: %v, %v", wait, err)
	}
	out, err := agent.ReadStderr(ctx, &agentpb.ReadStreamRequest{ContainerId: "c1", ExecId: "e1", Len: 9})
	if err != nil || string(out.GetData()) != "data" {
		t.Errorf("read: %v, %v", out, err)
	}
	if _, err := agent.RemoveContainer(ctx, &agentpb.RemoveContainerRequest{ContainerId: "c1", Timeout: 7}); err != nil {
		t.Errorf("remove: %v", err)
	}
	last, err := agent.GetDiagnosticData(ctx, &agentpb.GetDiagnosticDataRequest{LogType: "termination_log", ContainerId: "c1"})
	if err != nil || last.GetData() != "bye?" {
		t.Errorf("termination log: %v, %v", last, err)
	}
	routes, err := agent.UpdateRoutes(ctx, &agentpb.UpdateRoutesRequest{Routes: &agentpb.Routes{Routes: []*typespb.Route{{}, {}}}})
	if err != nil || len(routes.GetRoutes()) != 2 {
		t.Errorf("routes: %v, %v", routes, err)
	}
	if _, err := agent.DestroySandbox(ctx, &agentpb.DestroySandboxRequest{}); err != nil {
		t.Errorf("destroy: %v", err)
	}
	details, err := agent.GetGuestDetails(ctx, &agentpb.GuestDetailsRequest{MemBlockSize: true})
	if err != nil || !details.GetAgentDetails().GetInitDaemon() || details.GetAgentDetails().GetVersion() != "1.2.3" {
		t.Errorf("details: %v, %v", details, err)
	}
	metrics, err := agent.GetMetrics(ctx, &agentpb.GetMetricsRequest{})
	if err != nil || !strings.Contains(metrics.GetMetrics(), "\ncoffer_guest_memory_total_bytes ") {
		t.Errorf("metrics: %v, %v", metrics, err)
	}
	if _, err := agent.OnlineCPUMem(ctx, &agentpb.OnlineCPUMemRequest{NbCpus: 1}); err != nil {
		t.Errorf("online: %v", err)
	}
	if _, err := agent.OnlineCPUMem(ctx, &agentpb.OnlineCPUMemRequest{NbCpus: 100000}); status.Code(err) != codes.Unimplemented {
		t.Errorf("online of what is not there: %v", err)
	}
	want := []string{"write c1 e1", "wait c1 e1", "read c1 e1 true 9", "remove c1 7s", "log c1", "routes 2", "remove all", "destroy pod"}
	if got := strings.Join(f.asked(), ", "); got != strings.Join(want, ", ") {
		t.Errorf("calls:\n%s\nwant:\n%s", got, strings.Join(want, ", "))
	}

	report, err := guestpb.NewDiagnosticsClient(client).GetPullReport(ctx, &guestpb.GetPullReportRequest{ContainerId: "c1"})
	if err != nil || report.GetReference() != "ref" || report.GetProcess().GetArguments() != "image" || strings.Contains(report.String(), "secret") {
		t.Errorf("pull report: %v, %v", report, err)
	}
	user, err := guestpb.NewDiagnosticsClient(client).GetContainerUser(ctx, &guestpb.GetContainerUserRequest{ContainerId: "c1"})
	if err != nil || user.GetUid() != 1000 || user.GetGid() != 1001 || !slices.Equal(user.GetAdditionalGids(), []uint32{1001, 50000}) {
		t.Errorf("user: %v, %v", user, err)
	}
	progress, err := guestpb.NewProgressClient(client).WaitPull(ctx, &guestpb.WaitPullRequest{ContainerId: "c1", Seen: 4})
	if err != nil || progress.GetSerial() != 5 || progress.GetPhase() != "fetch" || progress.GetBytesFetched() != 7 {
		t.Errorf("pull progress: %v, %v", progress, err)
	}
	boot, err := guestpb.NewDiagnosticsClient(client).GetBootReport(ctx, &guestpb.GetBootReportRequest{})
	if err != nil || boot.GetPhases()[0].GetMicros() != 5000 {
		t.Errorf("boot report: %v, %v", boot, err)
	}
	health, err := healthpb.NewHealthClient(client).Check(ctx, &healthpb.CheckRequest{})
	if err != nil || health.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("health: %v, %v", health, err)
	}
}

// TestIdentifiersAreChecked: nothing behind the chain sees an identifier that could be a path or an option.
func TestIdentifiersAreChecked(t *testing.T) {
	f := &fake{}
	agent := agentpb.NewAgentServiceClient(connect(t, f, policy.NewBuiltin()))
	ctx := t.Context()
	for name, call := range map[string]func() error{
		"empty": func() error { _, err := agent.StartContainer(ctx, &agentpb.StartContainerRequest{}); return err },
		"path": func() error {
			_, err := agent.RemoveContainer(ctx, &agentpb.RemoveContainerRequest{ContainerId: "../x"})
			return err
		},
		"option": func() error {
			_, err := agent.PauseContainer(ctx, &agentpb.PauseContainerRequest{ContainerId: "-rf"})
			return err
		},
		"zero byte": func() error {
			_, err := agent.ResumeContainer(ctx, &agentpb.ResumeContainerRequest{ContainerId: "a\x00b"})
			return err
		},
		"endless": func() error {
			_, err := agent.StatsContainer(ctx, &agentpb.StatsContainerRequest{ContainerId: strings.Repeat("a", 129)})
			return err
		},
		"exec": func() error {
			_, err := agent.ExecProcess(ctx, &agentpb.ExecProcessRequest{ContainerId: "c1", ExecId: "a/b"})
			return err
		},
		"exec of a stream": func() error {
			_, err := agent.ReadStdout(ctx, &agentpb.ReadStreamRequest{ContainerId: "c1", ExecId: "a b", Len: 1})
			return err
		},
		"sandbox": func() error {
			_, err := agent.CreateSandbox(ctx, &agentpb.CreateSandboxRequest{SandboxId: "a\nb"})
			return err
		},
	} {
		if err := call(); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := f.asked(); len(got) > 0 {
		t.Errorf("calls came through: %v", got)
	}
}

func TestPolicyComesFirst(t *testing.T) {
	f := &fake{}
	client := connect(t, f, policy.NewStrict())
	agent := agentpb.NewAgentServiceClient(client)
	_, err := agent.ExecProcess(t.Context(), &agentpb.ExecProcessRequest{ContainerId: "c1", ExecId: "e1"})
	if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "ExecProcess is blocked by policy: nobody may run further programs in containers") {
		t.Errorf("exec: %v", err)
	}
	_, err = agent.SetPolicy(t.Context(), &agentpb.SetPolicyRequest{Policy: "package agent_policy"})
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("set policy: %v", err)
	}
	if got := f.asked(); len(got) > 0 {
		t.Errorf("calls came through: %v", got)
	}
}

// allowAll is what a policy could say at worst.
type allowAll struct{}

func (allowAll) Allow(context.Context, string, protoreflect.ProtoMessage) error { return nil }

// TestEveryMethodAnswers calls every method of the protocol under a policy that allows all: the guest carries it out, or says that it
// does not, and nothing is undecided.
func TestEveryMethodAnswers(t *testing.T) {
	refused := map[string]bool{
		"SetPolicy": true, "SetGuestDateTime": true, "GetIPTables": true, "SetIPTables": true, "MemHotplugByProbe": true, "AddSwap": true,
		"AddSwapPath": true, "MemAgentMemcgSet": true, "MemAgentCompactSet": true, "UpdateEphemeralMounts": true,
		"RemoveStaleVirtiofsShareMounts": true, "GetVolumeStats": true, "ResizeVolume": true,
	}
	f := &fake{}
	client := connect(t, f, allowAll{})
	methods := agentpb.File_proto_agent_agent_proto.Services().Get(0).Methods()
	// One request that has the identifiers at the numbers that every message uses; other fields are unknown to most and ignored.
	for i := range methods.Len() {
		name := string(methods.Get(i).Name())
		request := &agentpb.ExecProcessRequest{}
		input := methods.Get(i).Input()
		if field := input.Fields().ByName("container_id"); field != nil && field.Number() == 1 {
			request.ContainerId = "c1"
		}
		if name == "GetDiagnosticData" {
			continue // has its identifier elsewhere, and is called above
		}
		err := client.Call(t.Context(), "grpc.AgentService", name, request, &emptypb.Empty{})
		if got := status.Code(err) == codes.Unimplemented; got != refused[name] {
			t.Errorf("%s: %v", name, err)
		}
		if refused[name] && !strings.Contains(err.Error(), "is not offered by this guest: ") {
			t.Errorf("%s gives no reason: %v", name, err)
		}
	}
}

// TestCallsWaitForTheMachine: what the agent answers by itself is answered at once, all else when the guest is complete.
func TestCallsWaitForTheMachine(t *testing.T) {
	f := &fake{}
	asked, completed := make(chan struct{}), make(chan error)
	client := connectTo(t, f, policy.NewBuiltin(), func(context.Context) error {
		asked <- struct{}{}
		return <-completed
	})
	agent := agentpb.NewAgentServiceClient(client)
	if _, err := agent.GetGuestDetails(t.Context(), &agentpb.GuestDetailsRequest{}); err != nil {
		t.Fatal(err)
	}
	start := func() <-chan error {
		result := make(chan error, 1)
		go func() {
			_, err := agent.StartContainer(t.Context(), &agentpb.StartContainerRequest{ContainerId: "c1"})
			result <- err
		}()
		<-asked
		return result
	}
	failed := start()
	completed <- fmt.Errorf("no driver: %w", errdefs.ErrUnavailable)
	if err := <-failed; status.Code(err) != codes.Unavailable {
		t.Errorf("call to an unfit machine: %v", err)
	}
	waiting := start()
	if calls := f.asked(); len(calls) != 0 {
		t.Errorf("called before the machine was complete: %v", calls)
	}
	completed <- nil
	if err := <-waiting; err != nil {
		t.Error(err)
	}
	if calls := f.asked(); len(calls) != 1 {
		t.Errorf("calls are %v, want one", calls)
	}
}

func TestErrorsBecomeStatus(t *testing.T) {
	for name, test := range map[string]struct {
		err  error
		code codes.Code
	}{
		"invalid":      {errdefs.ErrInvalidArgument, codes.InvalidArgument},
		"missing":      {errdefs.ErrNotFound, codes.NotFound},
		"exists":       {errdefs.ErrAlreadyExists, codes.AlreadyExists},
		"state":        {errdefs.ErrFailedPrecondition, codes.FailedPrecondition},
		"key refused":  {errdefs.ErrPermissionDenied, codes.PermissionDenied},
		"broker down":  {errdefs.ErrUnavailable, codes.Unavailable},
		"no room":      {errdefs.ErrResourceExhausted, codes.ResourceExhausted},
		"flipped byte": {errdefs.ErrDataLoss, codes.DataLoss},
		"given up":     {context.Canceled, codes.Canceled},
		"too late":     {context.DeadlineExceeded, codes.DeadlineExceeded},
		"other":        {errors.New("odd"), codes.Unknown},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fake{err: fmt.Errorf("pull image registry.test/a: key kbs:///a/b/c: %w", test.err)}
			agent := agentpb.NewAgentServiceClient(connect(t, f, policy.NewBuiltin()))
			_, err := agent.CreateContainer(t.Context(), &agentpb.CreateContainerRequest{ContainerId: "c1"})
			if status.Code(err) != test.code || !strings.Contains(err.Error(), "key kbs:///a/b/c") {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestReasonsAreBounded(t *testing.T) {
	err := toStatus(errors.New(strings.Repeat("ä", 10000) + "\xff"))
	if text := status.Convert(err).Message(); len(text) > maxReason+10 || !strings.HasSuffix(text, " ...") {
		t.Errorf("reason of %d bytes", len(text))
	}
}

func TestGarbageIsRefused(t *testing.T) {
	f := &fake{}
	client := connect(t, f, allowAll{})
	// A message whose field 1 is no text: bytes that are not UTF-8.
	err := client.Call(t.Context(), "grpc.AgentService", "StartContainer", &guestpb.PullReport{Reference: "c1", ManifestDigest: ""}, &emptypb.Empty{})
	if err != nil {
		t.Errorf("same shape: %v", err)
	}
	err = client.Call(t.Context(), "grpc.AgentService", "StartContainer", &agentpb.ReadStreamResponse{Data: []byte("\xff\xfe")}, &emptypb.Empty{})
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("garbage: %v", err)
	}
	if got := f.asked(); len(got) != 1 {
		t.Errorf("calls: %v", got)
	}
}
