package metrics

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/coffer-project/coffer/integration/require"
	"github.com/coffer-project/coffer/snapshotter"
	"github.com/coffer-project/coffer/snapshotter/server"
)

// TestSnapshotters counts what the two snapshotters of a node hold, and goes on when one of them ends.
func TestSnapshotters(t *testing.T) {
	require.Root(t) // overlayfs is tried when a snapshotter opens
	addresses, stop := map[string]string{}, map[string]func(){}
	for name, layers := range map[string]int{"coffer": 2, "coffer-default": 1} {
		addresses[name], stop[name] = serveSnapshots(t, layers)
	}
	registry := prometheus.NewPedanticRegistry()
	all, err := NewSnapshotters(registry, addresses)
	if err != nil {
		t.Fatal(err)
	}
	defer all.Close()
	lint(t, registry)
	check := func(want string) {
		t.Helper()
		if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "coffer_snapshotter_up", "coffer_snapshots"); err != nil {
			t.Error(err)
		}
	}
	const (
		up = "# HELP coffer_snapshotter_up 1 when the snapshotter answers.\n# TYPE coffer_snapshotter_up gauge\n" +
			"coffer_snapshotter_up{snapshotter=\"coffer\"} %d\ncoffer_snapshotter_up{snapshotter=\"coffer-default\"} 1\n"
		counts = "# HELP coffer_snapshots Snapshots by mode (reference-only: left to guests, passthrough: unpacked on this host) and kind.\n" +
			"# TYPE coffer_snapshots gauge\n"
		first  = "coffer_snapshots{kind=\"committed\",mode=\"reference-only\",snapshotter=\"coffer\"} 2\n"
		second = "coffer_snapshots{kind=\"committed\",mode=\"reference-only\",snapshotter=\"coffer-default\"} 1\n"
	)
	check(fmt.Sprintf(up, 1) + counts + first + second)
	stop["coffer"]()
	check(fmt.Sprintf(up, 0) + counts + second)

	if _, err := NewSnapshotters(registry, addresses); err == nil {
		t.Error("the same snapshotters are collected twice")
	}
}

// serveSnapshots serves a snapshotter with some layers until stop, or the end of the test.
func serveSnapshots(t *testing.T, layers int) (address string, stop func()) {
	t.Helper()
	dir := t.TempDir()
	s, err := snapshotter.New(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	for i := range layers {
		_, err := s.Prepare(namespaces.WithNamespace(t.Context(), "k8s.io"), fmt.Sprint("key", i), "", snapshots.WithLabels(map[string]string{
			snapshots.LabelSnapshotRef: digest.FromString(fmt.Sprint(i)).String(),
		}))
		if !errdefs.IsAlreadyExists(err) {
			t.Fatal(err)
		}
	}
	address = filepath.Join(dir, "s")
	listener, err := server.Listen(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, listener, s) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return address, stop
}
