package metrics

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	eventsapi "github.com/containerd/containerd/api/services/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/coffer-project/coffer/node/pods"
	"github.com/coffer-project/coffer/shim/event"
	"github.com/coffer-project/coffer/shim/sandbox"
)

func TestCount(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	events := NewEvents(registry)
	for _, e := range []event.Event{
		{Topic: event.PodStarted, Took: 2 * time.Second, Steps: map[string]time.Duration{"vm_boot": time.Second}},
		{Topic: event.PodFailed}, {Topic: event.PodFailed},
		{Topic: event.PodStopped}, {Topic: event.PodStopped, Error: "vm died"},
		{Topic: event.PullStarted}, {Topic: event.PullProgress, Total: 77},
		{Topic: event.PullDone, Took: 90 * time.Second, Total: 1000, Steps: map[string]time.Duration{"fetch": 30 * time.Second, "evil": time.Hour}},
		{Topic: event.PullDone, Took: time.Second, Total: 24},
		{Topic: event.PullFailed},
		{Topic: "/coffer/of/the/future"},
	} {
		events.Count(&e)
	}
	const want = `
# HELP coffer_pod_starts_total Pods that started, or failed to, by result.
# TYPE coffer_pod_starts_total counter
coffer_pod_starts_total{result="failure"} 2
coffer_pod_starts_total{result="success"} 1
# HELP coffer_pod_stops_total Pods that ended, by reason: requested or died.
# TYPE coffer_pod_stops_total counter
coffer_pod_stops_total{reason="died"} 1
coffer_pod_stops_total{reason="requested"} 1
# HELP coffer_pull_bytes_total Size of the images pulled in guests, as their registries hold them.
# TYPE coffer_pull_bytes_total counter
coffer_pull_bytes_total 1024
# HELP coffer_pull_phase_seconds_total Time that guests report for each step of their pulls; layers are pulled side by side.
# TYPE coffer_pull_phase_seconds_total counter
coffer_pull_phase_seconds_total{phase="fetch"} 30
# HELP coffer_pulls_total Image pulls in guests, by result.
# TYPE coffer_pulls_total counter
coffer_pulls_total{result="failure"} 1
coffer_pulls_total{result="success"} 2
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "coffer_pod_starts_total", "coffer_pod_stops_total",
		"coffer_pulls_total", "coffer_pull_bytes_total", "coffer_pull_phase_seconds_total"); err != nil {
		t.Error(err)
	}
	lint(t, registry)
	for name, want := range map[string]float64{"coffer_pod_start_seconds": 2, "coffer_pull_seconds": 91, "coffer_pod_start_phase_seconds": 1} {
		if got := sum(t, registry, name); got != want {
			t.Errorf("%s has the sum %v, want %v", name, got, want)
		}
	}
}

// lint holds the names against the conventions of Prometheus.
func lint(t *testing.T, registry prometheus.Gatherer) {
	t.Helper()
	problems, err := testutil.GatherAndLint(registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// sum is that of a histogram.
func sum(t *testing.T, registry prometheus.Gatherer, name string) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == name {
			return family.GetMetric()[0].GetHistogram().GetSampleSum()
		}
	}
	t.Fatalf("no histogram %s", name)
	return 0
}

// fakeContainerd delivers prepared envelopes to each subscriber and then breaks the stream.
type fakeContainerd struct {
	eventsapi.UnimplementedEventsServer
	filters chan []string
	calls   int
	send    []*types.Envelope
}

func (f *fakeContainerd) Subscribe(r *eventsapi.SubscribeRequest, stream eventsapi.Events_SubscribeServer) error {
	f.calls++ // subscriptions come one after the other
	if f.calls > 2 {
		f.send = nil
	}
	for _, e := range f.send {
		if err := stream.Send(e); err != nil {
			return err
		}
	}
	select {
	case f.filters <- r.GetFilters():
		return errors.New("restarting")
	case <-stream.Context().Done():
		return nil
	}
}

func envelope(t *testing.T, topic string, message any) *types.Envelope {
	t.Helper()
	e := &types.Envelope{Topic: topic, Namespace: "k8s.io"}
	var err error
	switch m := message.(type) {
	case *event.Event:
		e.Event, err = anypb.New(m.Encode())
	case *emptypb.Empty:
		e.Event, err = anypb.New(m)
	}
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// TestFollow: a containerd that restarts is subscribed to again, and what is no event of ours harms nothing.
func TestFollow(t *testing.T) {
	fake := &fakeContainerd{filters: make(chan []string), send: []*types.Envelope{
		envelope(t, event.PodFailed, &event.Event{Sandbox: "s", Phase: "failed"}),
		envelope(t, event.PodFailed, &emptypb.Empty{}),
		envelope(t, event.PodFailed, nil),
	}}
	path := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	eventsapi.RegisterEventsServer(server, fake)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	registry := prometheus.NewRegistry()
	events := NewEvents(registry)
	events.pause = time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	followed := make(chan error, 1)
	go func() { followed <- events.Follow(ctx, path) }()
	for range 3 { // with the third one all of the second is counted
		if filters := <-fake.filters; len(filters) != 1 || filters[0] != `topic~="^/coffer/"` {
			t.Errorf("filters: %q", filters)
		}
	}
	cancel()
	if err := <-followed; err != nil {
		t.Error(err)
	}
	if got := testutil.ToFloat64(events.starts.WithLabelValues(failure)); got != 2 {
		t.Errorf("%v failures, want 2: one for each subscription", got)
	}
	if got := testutil.ToFloat64(events.unreadable); got != 4 {
		t.Errorf("%v unreadable events, want 4", got)
	}
}

func TestPods(t *testing.T) {
	stat := "42 (qemu) system) S 1 42 42 0 -1 4 1 0 0 0 150 50 0 0 20 0 4 0 99 1000000 7 18446744073709551615"
	collector := Pods{
		List: func(context.Context) ([]pods.Pod, error) {
			return []pods.Pod{
				{
					Record: sandbox.Record{ID: "s1", PodName: "web", PodNamespace: "default", ShimPID: 43, CreatedAt: time.Unix(100, 0)},
					Report: &sandbox.Report{State: "running", VMPID: 42, VCPUs: 2, MemoryMiB: 512, Containers: map[string]sandbox.ContainerReport{
						"a": {State: "creating", Progress: &sandbox.Progress{BytesPerSecond: 1000}}, "b": {State: "running"},
					}},
				},
				{Record: sandbox.Record{ID: "s2"}, Orphan: true},
			}, nil
		},
		ReadFile: func(path string) ([]byte, error) {
			if path == "/proc/42/stat" {
				return []byte(stat), nil
			}
			return nil, fs.ErrNotExist
		},
	}
	want := fmt.Sprintf(`
# HELP coffer_pulls_in_progress Containers whose images are being pulled in guests.
# TYPE coffer_pulls_in_progress gauge
coffer_pulls_in_progress 1
# HELP coffer_pulls_fetching_bytes_per_second Bytes of layers per second that guests fetch now, all pulls together.
# TYPE coffer_pulls_fetching_bytes_per_second gauge
coffer_pulls_fetching_bytes_per_second 1000
# HELP coffer_vm_cpu_seconds_total Processor time that the pod's VM has used on this host.
# TYPE coffer_vm_cpu_seconds_total counter
coffer_vm_cpu_seconds_total{namespace="default",pod="web",sandbox="s1"} 2
# HELP coffer_vm_memory_bytes Memory that the pod's VM was given.
# TYPE coffer_vm_memory_bytes gauge
coffer_vm_memory_bytes{namespace="default",pod="web",sandbox="s1"} 5.36870912e+08
# HELP coffer_vm_resident_memory_bytes Memory that the pod's VM occupies on this host.
# TYPE coffer_vm_resident_memory_bytes gauge
coffer_vm_resident_memory_bytes{namespace="default",pod="web",sandbox="s1"} %d
`, 7*os.Getpagesize())
	if err := testutil.CollectAndCompare(collector, strings.NewReader(want), "coffer_pulls_in_progress", "coffer_pulls_fetching_bytes_per_second", "coffer_vm_cpu_seconds_total",
		"coffer_vm_memory_bytes", "coffer_vm_resident_memory_bytes", "coffer_shim_resident_memory_bytes"); err != nil {
		t.Error(err)
	}
	if got := testutil.CollectAndCount(collector, "coffer_pods"); got != len(states) {
		t.Errorf("%d states, want %d", got, len(states))
	}
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(collector)
	lint(t, registry)
	for name, broken := range map[string]string{"short": "42 (q) S 1", "words": strings.ReplaceAll(stat, "150", "many")} {
		collector.ReadFile = func(string) ([]byte, error) { return []byte(broken), nil }
		if got := testutil.CollectAndCount(collector, "coffer_vm_cpu_seconds_total"); got != 0 {
			t.Errorf("%s: figures of a process that cannot be read", name)
		}
	}
}

// TestServe: scrapes work, also while the snapshotter is away, and end with the program.
func TestServe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m")
	registry := prometheus.NewRegistry()
	snapshotters, err := NewSnapshotters(registry, map[string]string{"coffer": filepath.Join(t.TempDir(), "none")})
	if err != nil {
		t.Fatal(err)
	}
	defer snapshotters.Close()
	ctx, cancel := context.WithCancel(t.Context())
	killed, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	killed.SetUnlinkOnClose(false) // a killed exporter leaves its socket
	if err := killed.Close(); err != nil {
		t.Fatal(err)
	}
	listener, err := Listen(ctx, "unix:"+path)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, listener, registry) }()
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		},
	}}
	response, err := client.Get("http://node/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var text strings.Builder
	if err := response.Write(&text); err != nil || !strings.Contains(text.String(), "\ncoffer_snapshotter_up{snapshotter=\"coffer\"} 0\n") {
		t.Errorf("scraped %v:\n%s", err, text.String())
	}
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
}
