package agent

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/reflect/protoreflect"

	agentpb "github.com/coffer-project/coffer/proto/agent"
	guestpullpb "github.com/coffer-project/coffer/proto/guestpull/v1"
	"github.com/coffer-project/coffer/shim/agent/agenttest"
)

// patience ends a test that would hang.
const patience = 10 * time.Second

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func connect(t *testing.T, guest *agenttest.Guest, opts Options) *Client {
	t.Helper()
	client, err := Connect(testContext(t), guest.Dial, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func TestConnect(t *testing.T) {
	client := connect(t, agenttest.New(t), Options{})
	if client.Version() != agenttest.Version {
		t.Errorf("version is %q", client.Version())
	}
	if err := client.Check(testContext(t)); err != nil {
		t.Error(err)
	}
	select {
	case <-client.Done():
		t.Error("connection is done already")
	default:
	}
}

func TestConnectFails(t *testing.T) {
	hang := func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	}
	for name, test := range map[string]struct {
		prepare func(*agenttest.Guest)
		port    uint32
		want    error
	}{
		"no listener":  {port: 1, want: errdefs.ErrUnavailable},
		"sick agent":   {prepare: func(g *agenttest.Guest) { g.Fail("Check", errdefs.ErrUnavailable) }, want: errdefs.ErrUnavailable},
		"no version":   {prepare: func(g *agenttest.Guest) { g.Fail("Version", errdefs.ErrInternal) }, want: errdefs.ErrInternal},
		"silent agent": {prepare: func(g *agenttest.Guest) { g.Intercept("Check", hang) }, want: context.DeadlineExceeded},
		"guest dies meanwhile": {prepare: func(g *agenttest.Guest) {
			g.Intercept("Check", func(ctx context.Context) error { g.Drop(); return hang(ctx) })
		}, want: errdefs.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			guest := agenttest.New(t)
			if test.prepare != nil {
				test.prepare(guest)
			}
			client, err := Connect(testContext(t), guest.Dial, Options{Port: test.port, CallTimeout: 100 * time.Millisecond})
			if !errors.Is(err, test.want) {
				t.Errorf("got %v, %v; want %v", client, err, test.want)
			}
		})
	}
}

func TestConnectTimeoutCoversDial(t *testing.T) {
	dial := func(ctx context.Context, _ uint32) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if _, err := Connect(testContext(t), dial, Options{ConnectTimeout: 20 * time.Millisecond}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestErrorsAreNative(t *testing.T) {
	guest := agenttest.New(t)
	client := connect(t, guest, Options{})
	for name, class := range map[string]error{
		"not found":      errdefs.ErrNotFound,
		"invalid":        errdefs.ErrInvalidArgument,
		"denied":         errdefs.ErrPermissionDenied,
		"exists":         errdefs.ErrAlreadyExists,
		"precondition":   errdefs.ErrFailedPrecondition,
		"unavailable":    errdefs.ErrUnavailable,
		"internal":       errdefs.ErrInternal,
		"not offered":    errdefs.ErrNotImplemented,
		"guest deadline": context.DeadlineExceeded,
	} {
		t.Run(name, func(t *testing.T) {
			guest.Fail("StartContainer", class)
			if _, err := client.StartContainer(testContext(t), &agentpb.StartContainerRequest{}); !errors.Is(err, class) {
				t.Errorf("got %v, want %v", err, class)
			}
		})
	}
	if _, err := client.ResizeVolume(testContext(t), &agentpb.ResizeVolumeRequest{}); !errdefs.IsNotImplemented(err) {
		t.Errorf("a method that the guest lacks: got %v", err)
	}
}

// TestDeadlines: calls get the deadline of their class on both sides of the wire.
func TestDeadlines(t *testing.T) {
	guest := agenttest.New(t)
	seen := make(chan time.Duration, 1)
	look := func(ctx context.Context) error {
		deadline, ok := ctx.Deadline()
		if !ok {
			seen <- 0
		} else {
			seen <- time.Until(deadline)
		}
		return errdefs.ErrAborted // the answer does not matter
	}
	client := connect(t, guest, Options{CallTimeout: time.Hour, CreateTimeout: 10 * time.Hour})
	for name, test := range map[string]struct {
		method string
		call   func(context.Context) error
		limit  time.Duration
	}{
		"quick": {"StartContainer", func(ctx context.Context) error {
			_, err := client.StartContainer(ctx, &agentpb.StartContainerRequest{})
			return err
		}, time.Hour},
		"create": {"CreateContainer", func(ctx context.Context) error {
			_, err := client.CreateContainer(ctx, &agentpb.CreateContainerRequest{})
			return err
		}, 10 * time.Hour},
		"wait": {"WaitProcess", func(ctx context.Context) error {
			_, err := client.WaitProcess(ctx, &agentpb.WaitProcessRequest{})
			return err
		}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			guest.Intercept(test.method, look)
			// No deadline of the caller's here: it would hide the table's.
			if err := test.call(t.Context()); !errdefs.IsAborted(err) {
				t.Fatal(err)
			}
			if got := <-seen; got > test.limit || got < test.limit-time.Minute {
				t.Errorf("guest saw %v, want about %v", got, test.limit)
			}
		})
	}
}

func TestClassesNameMethods(t *testing.T) {
	services := []protoreflect.ServiceDescriptor{
		agentpb.File_proto_agent_agent_proto.Services().ByName("AgentService"),
		guestpullpb.File_proto_guestpull_v1_progress_proto.Services().ByName("Progress"),
	}
	for method := range classes {
		found := false
		for _, service := range services {
			found = found || service.Methods().ByName(protoreflect.Name(method)) != nil
		}
		if !found {
			t.Errorf("deadline table names %s, which is no method", method)
		}
	}
}

func TestCallerEndsCall(t *testing.T) {
	guest := agenttest.New(t)
	client := connect(t, guest, Options{})
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	guest.Intercept("StartContainer", func(context.Context) error {
		<-release // a guest that ignores the deadline it was told
		return errdefs.ErrAborted
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := client.StartContainer(ctx, &agentpb.StartContainerRequest{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	canceled, cancelNow := context.WithCancel(t.Context())
	cancelNow()
	if _, err := client.StartContainer(canceled, &agentpb.StartContainerRequest{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestGuestGoesAway(t *testing.T) {
	guest := agenttest.New(t)
	client := connect(t, guest, Options{})
	ctx := testContext(t)
	createAndStart(t, client, "c")

	waited := make(chan error, 1)
	go func() {
		_, err := client.Process("c", "").Wait(ctx)
		waited <- err
	}()
	if _, err := guest.WaitCall(ctx, "WaitProcess", 1); err != nil {
		t.Fatal(err)
	}
	guest.Drop()
	if err := <-waited; !errdefs.IsUnavailable(err) {
		t.Errorf("call in flight: got %v", err)
	}
	select {
	case <-client.Done():
	case <-ctx.Done():
		t.Fatal("Done is not closed")
	}
	if err := client.Check(ctx); !errdefs.IsUnavailable(err) {
		t.Errorf("later call: got %v", err)
	}
	if err := client.Close(); err != nil {
		t.Error(err)
	}
}

func TestClose(t *testing.T) {
	client := connect(t, agenttest.New(t), Options{})
	for range 2 {
		if err := client.Close(); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-client.Done():
	case <-testContext(t).Done():
		t.Fatal("Done is not closed")
	}
}

func TestReports(t *testing.T) {
	guest := agenttest.New(t)
	client := connect(t, guest, Options{})
	createAndStart(t, client, "c")
	if report, err := client.BootReport(testContext(t)); err != nil || len(report.GetPhases()) != 1 {
		t.Errorf("boot report %v, %v", report, err)
	}
	if report, err := client.PullReport(testContext(t), "c"); err != nil || report.GetReference() == "" {
		t.Errorf("pull report %v, %v", report, err)
	}
	guest.RunAs(&guestpullpb.ContainerUser{Uid: 7})
	if user, err := client.ContainerUser(testContext(t), "c"); err != nil || user.GetUid() != 7 {
		t.Errorf("user %v, %v", user, err)
	}
	if _, err := client.PullReport(testContext(t), "other"); !errdefs.IsNotFound(err) {
		t.Errorf("pull report of an unknown container: got %v", err)
	}
	if _, err := client.ContainerUser(testContext(t), "other"); !errdefs.IsNotFound(err) {
		t.Errorf("user of an unknown container: got %v", err)
	}
}

// TestStockGuest: a guest without our services is as good as any other.
func TestStockGuest(t *testing.T) {
	guest := agenttest.New(t, agenttest.WithStockAgent())
	client := connect(t, guest, Options{})
	if _, err := client.BootReport(testContext(t)); !errdefs.IsNotImplemented(err) {
		t.Errorf("boot report: got %v", err)
	}
	if _, err := client.PullReport(testContext(t), "c"); !errdefs.IsNotImplemented(err) {
		t.Errorf("pull report: got %v", err)
	}
	if _, err := client.ContainerUser(testContext(t), "c"); !errdefs.IsNotImplemented(err) {
		t.Errorf("user: got %v", err)
	}
	createAndStart(t, client, "c")
}

func TestOOMEvents(t *testing.T) {
	guest := agenttest.New(t)
	client := connect(t, guest, Options{})
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	guest.OOM("a")
	guest.OOM("b")
	var got []string
	err := client.OOMEvents(ctx, func(id string) {
		if got = append(got, id); len(got) == 2 {
			cancel()
		}
	})
	if err != nil || len(got) != 2 || got[0] != "a" || got[1] != "b" {
		t.Errorf("got %v, %v", got, err)
	}

	guest.Fail("GetOOMEvent", errdefs.ErrPermissionDenied)
	if err := client.OOMEvents(testContext(t), func(string) {}); !errdefs.IsPermissionDenied(err) {
		t.Errorf("refusal: got %v", err)
	}
	guest.Fail("GetOOMEvent", nil)
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	if err := client.OOMEvents(testContext(t), func(string) {}); err != nil {
		t.Errorf("lost connection: got %v", err)
	}
}

func createAndStart(t *testing.T, client *Client, id string) {
	t.Helper()
	ctx := testContext(t)
	if _, err := client.CreateContainer(ctx, &agentpb.CreateContainerRequest{ContainerId: id, ExecId: id}); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Agent().StartContainer(ctx, &agentpb.StartContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
}
