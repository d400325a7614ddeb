package plugin

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"

	agentpb "github.com/coffer-project/coffer/proto/agent"
	ocipb "github.com/coffer-project/coffer/proto/oci"
	"github.com/coffer-project/coffer/shim/agent/agenttest"
)

func TestPodLife(t *testing.T) {
	h := newHarness(t)
	must(t, h.createSandbox())
	if state := h.status(false).GetState(); state != "SANDBOX_NOTREADY" {
		t.Errorf("created pod is %s", state)
	}
	must(t, h.startSandbox())
	if status := h.status(false); status.GetState() != "SANDBOX_READY" || status.GetPid() == 0 {
		t.Errorf("running pod is %s with pid %d", status.GetState(), status.GetPid())
	}
	h.run("c1")
	report := h.report()
	var phases []string
	for _, phase := range report.Boot {
		phases = append(phases, phase.Name)
	}
	if !slices.Equal(phases, []string{"network", "vm_boot", "agent_ready", "setup"}) {
		t.Errorf("boot phases are %q", phases)
	}
	if len(report.GuestBoot) == 0 || report.AgentVersion != agenttest.Version {
		t.Errorf("guest's part is missing from %+v", report)
	}
	if c := report.Containers["c1"]; c.State != "running" || c.Image != "example.com/app:1" || c.CreateMicros == 0 {
		t.Errorf("container report is %+v", c)
	}
	_, err := h.sandboxes.StopSandbox(h.ctx, &sandboxapi.StopSandboxRequest{SandboxID: podID})
	must(t, err)
	if exit := h.events.awaitExit(t, "c1"); exit.GetExitStatus() != 137 {
		t.Errorf("container exited with %d, want 137", exit.GetExitStatus())
	}
	waited, err := h.sandboxes.WaitSandbox(h.ctx, &sandboxapi.WaitSandboxRequest{SandboxID: podID})
	must(t, err)
	if waited.GetExitStatus() != 0 || waited.GetExitedAt() == nil {
		t.Errorf("stopped pod exited with %d at %s", waited.GetExitStatus(), waited.GetExitedAt())
	}
	h.checkNothingLeft()
	if len(h.guest.Calls("DestroySandbox")) != 1 {
		t.Error("the guest was not asked to end its sandbox")
	}
	_, err = h.sandboxes.ShutdownSandbox(h.ctx, &sandboxapi.ShutdownSandboxRequest{SandboxID: podID})
	must(t, err)
	h.await("shim to end", h.end.Done())
}

// TestPortForward runs pods that can have port-forward and pods that cannot: those run all the same, and say why.
func TestPortForward(t *testing.T) {
	for name, test := range map[string]struct {
		options []agenttest.Option
		fail    error
		want    string
	}{
		"offered":       {},
		"old kernel":    {fail: errdefs.ErrFailedPrecondition.WithMessage("no sk_lookup"), want: "no sk_lookup"},
		"a stock guest": {options: []agenttest.Option{agenttest.WithStockAgent()}, want: "the guest image does not offer it"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t, test.options...)
			h.network.failForward = test.fail
			h.runSandbox()
			degraded, forwards := h.report().Degraded, 1
			if test.want != "" {
				forwards = 0
				if len(degraded) != 1 || !strings.Contains(degraded[0], test.want) {
					t.Errorf("the report says %q, want %q", degraded, test.want)
				}
			} else if len(degraded) != 0 {
				t.Errorf("the report says %q", degraded)
			}
			if got := h.network.forwarded(); got != forwards {
				t.Errorf("%d pods have port-forward, want %d", got, forwards)
			}
		})
	}
}

func TestGuestSetUp(t *testing.T) {
	h := newHarness(t)
	h.runSandbox()
	iface := h.guest.Calls("UpdateInterface")[0].Request.(*agentpb.UpdateInterfaceRequest).GetInterface()
	if iface.GetHwAddr() != "02:00:00:00:00:01" || iface.GetIPAddresses()[0].GetAddress() != "10.244.0.7" || iface.GetIPAddresses()[0].GetMask() != "24" {
		t.Errorf("interface is %v", iface)
	}
	route := h.guest.Calls("UpdateRoutes")[0].Request.(*agentpb.UpdateRoutesRequest).GetRoutes().GetRoutes()[0]
	if route.GetDest() != "" || route.GetGateway() != "10.244.0.1" {
		t.Errorf("default route is %v", route)
	}
	created := h.guest.Calls("CreateSandbox")[0].Request.(*agentpb.CreateSandboxRequest)
	if created.GetHostname() != "web" || !slices.Equal(created.GetDns(), []string{"nameserver 10.96.0.10"}) || created.GetSandboxPidns() {
		t.Errorf("sandbox is %v", created)
	}
	want := map[string]string{"/etc/hosts": "10.244.0.7\tweb", "/etc/hostname": "web\n", "/etc/resolv.conf": "nameserver 10.96.0.10"}
	h.run("c1")
	mounts := h.guest.Calls("CreateContainer")[0].Request.(*agentpb.CreateContainerRequest).GetOCI().GetMounts()
	for destination, text := range want {
		i := slices.IndexFunc(mounts, func(m *ocipb.Mount) bool { return m.GetDestination() == destination })
		if i < 0 {
			t.Errorf("container has no %s", destination)
			continue
		}
		content, _ := h.guest.File(mounts[i].GetSource())
		if !strings.Contains(string(content), text) {
			t.Errorf("%s is %q, want %q in it", destination, content, text)
		}
	}
}

// TestFailedStart lets each step of a start fail: the error tells why, nothing is left, and the shim can be shut down.
func TestFailedStart(t *testing.T) {
	boom := errors.New("boom")
	method := func(name string) func(*harness) {
		return func(h *harness) { h.guest.Fail(name, boom) }
	}
	for name, test := range map[string]struct {
		arrange func(*harness)
		wantErr error
		want    []string
	}{
		"network":   {arrange: func(h *harness) { h.network.fail(boom, nil) }, want: []string{"boom"}},
		"vm config": {arrange: func(h *harness) { h.driver.NewErr = errdefs.ErrFailedPrecondition }, wantErr: errdefs.ErrFailedPrecondition},
		"vm start":  {arrange: func(h *harness) { h.driver.StartErr = boom }, want: []string{"boom"}},
		"agent never answers": {
			arrange: func(h *harness) {
				h.config.Guest.BootTimeout.Duration /= 10
				h.guest.Intercept("Check", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
			},
			wantErr: errdefs.ErrUnavailable, want: []string{"guest.boot_timeout", "guest: hello"},
		},
		"guest panics": {
			arrange: func(h *harness) {
				h.guest.Intercept("Check", func(context.Context) error {
					h.vm().Print("Kernel panic - not syncing")
					h.vm().Crash(boom)
					return errdefs.ErrUnavailable
				})
			},
			want: []string{"Kernel panic", "boom"},
		},
		"details":        {arrange: method("GetGuestDetails"), want: []string{"boom", "guest: hello"}},
		"interface":      {arrange: method("UpdateInterface"), want: []string{"boom", "eth0"}},
		"routes":         {arrange: method("UpdateRoutes"), want: []string{"boom"}},
		"create sandbox": {arrange: method("CreateSandbox"), want: []string{"boom"}},
		"copy files":     {arrange: method("CopyFile"), want: []string{"boom"}},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			test.arrange(h)
			must(t, h.createSandbox())
			err := h.startSandbox()
			if err == nil {
				t.Fatal("the pod started")
			}
			if test.wantErr != nil && !errors.Is(err, test.wantErr) {
				t.Errorf("error is %v, want class %v", err, test.wantErr)
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error is %q, want %q in it", err, want)
				}
			}
			h.checkNothingLeft()
			if report := h.report(); report.State != "stopped" || report.Error == "" {
				t.Errorf("report is %+v", report)
			}
			_, err = h.sandboxes.ShutdownSandbox(h.ctx, &sandboxapi.ShutdownSandboxRequest{SandboxID: podID})
			must(t, err)
			h.await("shim to end", h.end.Done())
		})
	}
}

func TestStopInterruptsStart(t *testing.T) {
	h := newHarness(t)
	h.config.Guest.BootTimeout.Duration = patience
	hanging := make(chan struct{})
	h.guest.Intercept("Check", func(ctx context.Context) error {
		close(hanging)
		<-ctx.Done()
		return ctx.Err()
	})
	must(t, h.createSandbox())
	started := make(chan error, 1)
	go func() { started <- h.startSandbox() }()
	h.await("guest to hang", hanging)
	_, err := h.sandboxes.StopSandbox(h.ctx, &sandboxapi.StopSandboxRequest{SandboxID: podID})
	must(t, err)
	if err := <-started; err == nil || !strings.Contains(err.Error(), "asked to stop") {
		t.Errorf("interrupted start returned %v", err)
	}
	h.checkNothingLeft()
}

// TestInvalidPod lets a release fail once: the pod refuses work and the next stop releases the rest.
func TestInvalidPod(t *testing.T) {
	h := newHarness(t)
	h.runSandbox()
	h.network.fail(nil, errors.New("netlink is busy"))
	if _, err := h.sandboxes.StopSandbox(h.ctx, &sandboxapi.StopSandboxRequest{SandboxID: podID}); err == nil {
		t.Error("the stop hid that the network is still attached")
	}
	if state := h.report().State; state != "invalid" {
		t.Errorf("pod is %s, want invalid", state)
	}
	if err := h.create("c1", stdioPaths{}, nil); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("container in an invalid pod: %v", err)
	}
	h.network.fail(nil, nil)
	_, err := h.sandboxes.StopSandbox(h.ctx, &sandboxapi.StopSandboxRequest{SandboxID: podID})
	must(t, err)
	h.checkNothingLeft()
}

func TestPodRules(t *testing.T) {
	h := newHarness(t)
	if _, err := h.sandboxes.SandboxStatus(h.ctx, &sandboxapi.SandboxStatusRequest{SandboxID: podID}); !errdefs.IsNotFound(err) {
		t.Errorf("status of an unknown pod: %v", err)
	}
	h.runSandbox()
	if err := h.createSandbox(); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second create: %v", err)
	}
	if err := h.startSandbox(); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("second start: %v", err)
	}
	if _, err := h.sandboxes.UpdateSandbox(h.ctx, &sandboxapi.UpdateSandboxRequest{SandboxID: podID}); !errdefs.IsNotImplemented(err) {
		t.Errorf("update: %v", err)
	}
	platform, err := h.sandboxes.Platform(h.ctx, &sandboxapi.PlatformRequest{SandboxID: podID})
	must(t, err)
	if platform.GetPlatform().GetOS() != "linux" {
		t.Errorf("platform is %v", platform)
	}
	h.run("c1")
	metrics, err := h.sandboxes.SandboxMetrics(h.ctx, &sandboxapi.SandboxMetricsRequest{SandboxID: podID})
	must(t, err)
	if metrics.GetMetrics().GetData().GetTypeUrl() != "io.containerd.cgroups.v2.Metrics" {
		t.Errorf("metrics are a %q", metrics.GetMetrics().GetData().GetTypeUrl())
	}
	// containerd calls this after every deleted container; the pod must live on.
	_, err = h.tasks.Shutdown(h.ctx, &taskapi.ShutdownRequest{ID: "c0"})
	must(t, err)
	if state := h.status(false).GetState(); state != "SANDBOX_READY" {
		t.Errorf("pod is %s after a task's shutdown", state)
	}
}

func TestStockGuest(t *testing.T) {
	h := newHarness(t, agenttest.WithStockAgent())
	h.runSandbox()
	h.run("c1")
	if report := h.report(); len(report.GuestBoot) != 0 || report.Containers["c1"].State != "running" {
		t.Errorf("report of a stock guest is %+v", report)
	}
}
