package forget

import (
	"context"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"go.etcd.io/bbolt"
	"google.golang.org/grpc"

	"github.com/coffer-project/coffer/snapshotter"
	"github.com/coffer-project/coffer/snapshotter/server"
)

const plugin = "coffer-default"

// newRecords serves containerd's own records of a snapshotter, and returns them with the socket.
func newRecords(t *testing.T) (snapshots.Snapshotter, string) {
	t.Helper()
	dir := t.TempDir()
	sn, err := snapshotter.New(t.Context(), filepath.Join(dir, "root"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sn.Close() })
	cs, err := local.NewStore(filepath.Join(dir, "content"))
	if err != nil {
		t.Fatal(err)
	}
	db, err := bbolt.Open(filepath.Join(dir, "meta.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	records := metadata.NewDB(db, cs, map[string]snapshots.Snapshotter{plugin: sn})
	if err := records.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "sock"))
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(srv, snapshotservice.FromSnapshotter(records.Snapshotter(plugin)))
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(srv.Stop)
	return records.Snapshotter(plugin), l.Addr().String()
}

func chain(name string) string { return digest.FromString(name).String() }

// pull makes a reference-only layer, as an unpack does.
func pull(ctx context.Context, t *testing.T, sn snapshots.Snapshotter, name, parent string) {
	t.Helper()
	if parent != "" {
		parent = chain(parent)
	}
	_, err := sn.Prepare(ctx, "extract "+name, parent, snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotRef: chain(name)}))
	if !errdefs.IsAlreadyExists(err) {
		t.Fatal(err)
	}
}

func TestForget(t *testing.T) {
	tests := map[string]struct {
		forget string
		// busy is a layer that a container stands on.
		busy string
		left []string
	}{
		"the lowest layer":        {forget: "base", left: []string{"other"}},
		"the top layer":           {forget: "a2", left: []string{"other"}},
		"a layer in between":      {forget: "a1", left: []string{"other"}},
		"another image":           {forget: "other", left: []string{"base", "a1", "a2", "b1"}},
		"a layer that is gone":    {forget: "gone", left: []string{"base", "a1", "a2", "b1", "other"}},
		"under a container":       {forget: "base", busy: "a1", left: []string{"base", "a1", "other"}},
		"the base of a container": {forget: "b1", busy: "base", left: []string{"base", "other"}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			sn, socket := newRecords(t)
			ctx := namespaces.WithNamespace(t.Context(), "k8s.io")
			layers := map[string]string{}
			for _, l := range [][2]string{{"base", ""}, {"a1", "base"}, {"a2", "a1"}, {"b1", "base"}, {"other", ""}} {
				pull(ctx, t, sn, l[0], l[1])
				layers[chain(l[0])] = l[0]
			}
			if tc.busy != "" {
				if _, err := sn.Prepare(ctx, "container", chain(tc.busy)); err != nil {
					t.Fatal(err)
				}
			}
			f, err := New(t.Context(), socket)
			if err != nil {
				t.Fatal(err)
			}
			f.Forget(ctx, digest.FromString("no plugin"))
			for range 3 {
				f.Forget(server.WithPlugin(ctx, plugin), digest.FromString(tc.forget))
			}
			f.wait.Wait()
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			var left []string
			err = sn.Walk(ctx, func(_ context.Context, i snapshots.Info) error {
				if i.Kind == snapshots.KindCommitted {
					left = append(left, layers[i.Name])
				}
				return nil
			})
			slices.Sort(left)
			want := slices.Sorted(slices.Values(tc.left))
			if err != nil || !slices.Equal(left, want) {
				t.Fatalf("left are %q, %v; want %q of %q", left, err, want, slices.Sorted(maps.Values(layers)))
			}
			f.Forget(server.WithPlugin(ctx, plugin), digest.FromString("base")) // after Close: nothing
		})
	}
}
