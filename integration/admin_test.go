package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/coffer-project/coffer/integration/harness"
	"github.com/coffer-project/coffer/integration/require"
	"github.com/coffer-project/coffer/node/doctor"
	"github.com/coffer-project/coffer/node/pods"
	"github.com/coffer-project/coffer/shim/event"
)

// TestAdmin looks at a node as its admin does: doctor, ps, console, events and metrics, and what a killed shim leaves.
func TestAdmin(t *testing.T) {
	t.Parallel()
	node := ownNode(t, harness.Options{ShimConfig: "[guest]\nshow_console = true\n"})
	if _, err := os.Stat(node.AdminTool()); err != nil {
		require.Missing(t, err.Error()+": run make build")
	}
	ctx := t.Context()
	exporter, err := node.StartMetrics(ctx)
	if err != nil {
		t.Fatal(err)
	}
	watch, err := node.WatchEvents(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(exporter.Stop(), watch.Stop()); err != nil {
			t.Error(err)
		}
	})
	awaitMetric(t, node, "coffer_events_subscribed", func(v float64) bool { return v == 1 })

	l := newLab(t, node, "coffer", encryptedImage(t, node), nil)
	c := l.start(t, nil, "/bin/sh", "-c", "echo ready; sleep 1000000")
	l.says(t, c, "ready")
	t.Run("doctor", func(t *testing.T) { testDoctor(t, node) })
	t.Run("ps", func(t *testing.T) { testPs(t, l) })
	t.Run("console", func(t *testing.T) { testConsole(t, l) })
	t.Run("events", func(t *testing.T) { testEvents(t, l, watch, c.ID) })
	t.Run("metrics", func(t *testing.T) { testMetrics(t, l) })
	t.Run("orphan", func(t *testing.T) { testOrphan(t, l) })
}

// testDoctor: what the harness sets up right is right, and nothing is a failure.
func testDoctor(t *testing.T, node *harness.Node) {
	out, err := node.Admin(t.Context(), "doctor", "--json", "--config", node.ConfigPath("shim"),
		"--snapshotter-config", node.ConfigPath("snapshotter"), "--containerd-config", node.ConfigPath("containerd"))
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	var findings []doctor.Finding
	if err := json.Unmarshal([]byte(out), &findings); err != nil {
		t.Fatal(err)
	}
	statuses := map[string]doctor.Status{}
	for _, f := range findings {
		t.Logf("%-4s %-26s %s", f.Status, f.Check, f.Fact)
		if f.Status == doctor.Fail {
			t.Errorf("%s fails: %s", f.Check, f.Fact)
		}
		if statuses[f.Check] != doctor.OK {
			statuses[f.Check] = f.Status
		}
	}
	for _, check := range []string{
		"shim configuration", "snapshotter configuration", "qemu", "qemu devices", "guest image", "pod network", "overlayfs",
		"containerd", "shim binary", "containerd snapshotter", "containerd handlers", "containerd unpacking", "containerd socket", "snapshotter", "left-over pods",
	} {
		if statuses[check] != doctor.OK {
			t.Errorf("%s is %q, want ok", check, statuses[check])
		}
	}
	// A node that is not set up at all fails, by its exit code too.
	if out, err := node.Admin(t.Context(), "doctor", "--snapshotter-config", node.ConfigPath("shim")); err == nil || !strings.Contains(out, "pods cannot run") {
		t.Errorf("a node that is not set up: %v\n%s", err, out)
	}
}

// listed is the pod as cofferctl ps --json tells it.
func listed(t *testing.T, l *lab) *pods.Pod {
	t.Helper()
	out, err := l.node.Admin(l.ctx(t), "ps", "--json", "--config", l.node.ConfigPath("shim"))
	if err != nil {
		t.Fatal(err)
	}
	var all []pods.Pod
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		t.Fatal(err)
	}
	if len(all) != 1 {
		t.Fatalf("%d pods, want 1:\n%s", len(all), out)
	}
	return &all[0]
}

func testPs(t *testing.T, l *lab) {
	p := listed(t, l)
	vm, err := l.node.VMPID(l.pod)
	if err != nil {
		t.Fatal(err)
	}
	shim, err := l.node.ShimPID(l.pod)
	if err != nil {
		t.Fatal(err)
	}
	if p.ID != l.pod.ID || p.Name() != "default/testadmin" || p.State() != "running" || p.ShimPID != shim || p.Report.VMPID != uint32(vm) {
		t.Errorf("pod is %+v, %+v", p, p.Report)
	}
	if a := p.Report.Accelerator; a != "tcg" && a != "kvm" {
		t.Errorf("accelerator %q", a)
	}
	text, err := l.node.Admin(l.ctx(t), "ps", "--config", l.node.ConfigPath("shim"))
	if err != nil || !strings.Contains(text, "default/testadmin") || !strings.Contains(text, "1 running") {
		t.Errorf("table: %v\n%s", err, text)
	}
	text, err = l.node.Admin(l.ctx(t), "pulls", "--config", l.node.ConfigPath("shim"))
	if fields := strings.Fields(text); err != nil || strings.Count(text, "\n") != 2 || !slices.Contains(fields, "default/testadmin") || !slices.Contains(fields, "done") {
		t.Errorf("pulls: %v\n%s", err, text)
	}
}

func testConsole(t *testing.T, l *lab) {
	text, err := l.node.Admin(l.ctx(t), "console", "testadmin", "--config", l.node.ConfigPath("shim"))
	if err != nil || !strings.Contains(text, "coffer-guest") {
		t.Errorf("console: %v\n%s", err, text)
	}
	last, err := l.node.Admin(l.ctx(t), "console", "testadmin", "--lines", "1", "--config", l.node.ConfigPath("shim"))
	if err != nil || strings.Count(last, "\n") != 1 || !strings.HasSuffix(text, last) {
		t.Errorf("last line: %v\n%s", err, last)
	}
}

// testEvents: containerd's own tool shows pod and pull in words, each once, the pull with what it has done.
func testEvents(t *testing.T, l *lab, watch *harness.Process, container string) {
	ctx := l.ctx(t)
	var done string
	err := harness.Eventually(ctx, func(context.Context) error {
		for line := range strings.Lines(watch.Tail(1000)) {
			if strings.Contains(line, " "+event.PullDone+" ") && strings.Contains(line, container) {
				done = line
				return nil
			}
		}
		return fmt.Errorf("no event %s of container %s:\n%s", event.PullDone, container, watch.Tail(1000))
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Log(done)
	for _, want := range []string{l.image, l.pod.ID, `"event":"done"`, `"layers":"1"`, `"digest":"sha256:`, `"step.fetch":`} {
		if !strings.Contains(done, want) {
			t.Errorf("no %s in %s", want, done)
		}
	}
	all := watch.Tail(1000)
	for _, topic := range []string{event.PodStarted, event.PullStarted, event.PullProgress} {
		if !strings.Contains(all, " "+topic+" ") {
			t.Errorf("no event %s:\n%s", topic, all)
		}
	}
	if strings.Contains(all, "cannot unmarshal") {
		t.Error("ctr cannot read an event")
	}
}

var metricLine = regexp.MustCompile(`(?m)^([a-z_]+(?:\{[^}]*\})?) (\S+)$`)

// scrape returns all samples by name and labels.
func scrape(ctx context.Context, node *harness.Node) (map[string]float64, error) {
	text, err := node.Metrics(ctx)
	if err != nil {
		return nil, err
	}
	samples := map[string]float64{}
	for _, found := range metricLine.FindAllStringSubmatch(text, -1) {
		if samples[found[1]], err = strconv.ParseFloat(found[2], 64); err != nil {
			return nil, fmt.Errorf("%s: %w", found[0], err)
		}
	}
	return samples, nil
}

func awaitMetric(t *testing.T, node *harness.Node, name string, ok func(float64) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), lifeBudget)
	defer cancel()
	err := harness.Eventually(ctx, func(ctx context.Context) error {
		samples, err := scrape(ctx, node)
		if value, has := samples[name]; err == nil && (!has || !ok(value)) {
			err = fmt.Errorf("%s is %v", name, value)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func testMetrics(t *testing.T, l *lab) {
	awaitMetric(t, l.node, `coffer_pulls_total{result="success"}`, func(v float64) bool { return v == 1 })
	samples, err := scrape(l.ctx(t), l.node)
	if err != nil {
		t.Fatal(err)
	}
	pod := fmt.Sprintf(`{namespace="default",pod="testadmin",sandbox="%s"}`, l.pod.ID)
	for name, ok := range map[string]func(v float64) bool{
		`coffer_pods{state="running"}`:                                                  func(v float64) bool { return v == 1 },
		`coffer_pods{state="orphan"}`:                                                   func(v float64) bool { return v == 0 },
		`coffer_pod_starts_total{result="success"}`:                                     func(v float64) bool { return v == 1 },
		`coffer_pod_starts_total{result="failure"}`:                                     func(v float64) bool { return v == 0 },
		`coffer_pod_start_seconds_count`:                                                func(v float64) bool { return v == 1 },
		`coffer_pod_start_seconds_sum`:                                                  func(v float64) bool { return v > 0.1 && v < 300 },
		`coffer_pull_seconds_sum`:                                                       func(v float64) bool { return v > 0 && v < 300 },
		`coffer_pull_bytes_total`:                                                       func(v float64) bool { return v > 100<<10 && v < 10<<20 },
		`coffer_vm_memory_bytes` + pod:                                                  func(v float64) bool { return v >= 512<<20 },
		`coffer_vm_resident_memory_bytes` + pod:                                         func(v float64) bool { return v > 50<<20 && v < 4<<30 },
		`coffer_vm_cpu_seconds_total` + pod:                                             func(v float64) bool { return v > 0 },
		`coffer_shim_resident_memory_bytes` + pod:                                       func(v float64) bool { return v > 5<<20 && v < 200<<20 },
		`coffer_snapshotter_up{snapshotter="coffer"}`:                                   func(v float64) bool { return v == 1 },
		`coffer_snapshots{kind="committed",mode="reference-only",snapshotter="coffer"}`: func(v float64) bool { return v == 1 },
		`coffer_events_unreadable`:                                                      func(v float64) bool { return v == 0 },
	} {
		if value, has := samples[name]; !has || !ok(value) {
			t.Errorf("%s is %v (there: %v)", name, value, has)
		}
		t.Logf("%s %v", name, samples[name])
	}
}

// testOrphan kills a shim while nobody is there to clean up after it.
func testOrphan(t *testing.T, l *lab) {
	ctx := l.ctx(t)
	config := []string{"--config", l.node.ConfigPath("shim")}
	if out, err := l.node.Admin(ctx, append([]string{"clean"}, config...)...); err != nil || out != "" {
		t.Fatalf("clean with nothing to do: %v, %s", err, out)
	}
	shim, err := l.node.ShimPID(l.pod)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.node.Containerd.Kill(), syscall.Kill(shim, syscall.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	err = harness.Eventually(ctx, func(context.Context) error {
		if p := listed(t, l); p.State() != "orphan" || p.ID != l.pod.ID {
			return fmt.Errorf("pod is %s", p.State())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	text, err := l.node.Admin(ctx, append([]string{"ps"}, config...)...)
	if err != nil || !strings.Contains(text, "1 orphaned") || !strings.Contains(text, "cofferctl clean") {
		t.Errorf("table: %v\n%s", err, text)
	}
	// It leaves alone what changed a moment ago.
	if err := harness.Eventually(ctx, func(ctx context.Context) error {
		_, err := l.node.Admin(ctx, append([]string{"clean"}, config...)...)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if text, err := l.node.Admin(ctx, append([]string{"ps"}, config...)...); err != nil || strings.Count(text, "\n") != 1 {
		t.Errorf("after clean: %v\n%s", err, text)
	}
	if err := l.node.StartContainerd(ctx); err != nil {
		t.Fatal(err)
	}
	l.remove(t)
	checkGone(t, l.node)
}
