package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/integration/require"
	"github.com/coffer-project/coffer/proto/volume"
)

const app = "registry.example/app:1"

func metadataWith(extra map[string]string) map[string]string {
	m := map[string]string{volume.MetadataProxyMode: "true", volume.MetadataPlatform: "linux/s390x"}
	maps.Copy(m, extra)
	return m
}

func TestContainerGetsTheReference(t *testing.T) {
	a, b := chainA.String(), chainB.String()
	known := metadataWith(map[string]string{
		volume.MetadataImageRef: app, volume.MetadataManifestDigest: manifestOf(app), volume.MetadataLayerDigest: blobOf(b),
	})
	tests := map[string]struct {
		layers     []layerOf
		on         int
		wantSource string
		want       map[string]string
	}{
		"on the last layer": {
			layers: []layerOf{{chain: a, image: app, above: 1}, {chain: b, parent: a, image: app}}, on: 1,
			wantSource: app, want: known,
		},
		"on a layer that the image merely contains": {
			layers: []layerOf{{chain: a, image: app, above: 1}, {chain: b, parent: a, image: app}}, on: 0,
			wantSource: volume.DummySource, want: metadataWith(map[string]string{volume.MetadataLayerDigest: blobOf(a)}),
		},
		"on an unnamed layer above a named one": {
			layers: []layerOf{{chain: a, image: app}, {chain: b, parent: a}}, on: 1,
			wantSource: volume.DummySource, want: metadataWith(nil),
		},
		"on a named layer above an unnamed one": {
			layers: []layerOf{{chain: a}, {chain: b, parent: a, image: app}}, on: 1,
			wantSource: app, want: known,
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			s := open(t, t.TempDir(), WithPlatform("linux/s390x"))
			names := map[string]string{"": ""}
			var on string
			for i, l := range tc.layers {
				l.parent = names[l.parent]
				names[l.chain] = pull(t, s, l)
				if i == tc.on {
					on = names[l.chain]
				}
			}
			mounts := prepare(t, s, "ns/9/container", on)
			v := theVolume(t, s, mounts)
			want := &volume.Volume{VolumeType: volume.TypeImageGuestPull, Source: tc.wantSource, ImagePull: &volume.ImagePull{Metadata: tc.want}}
			if !reflect.DeepEqual(want, v) {
				t.Fatalf("got %+v %+v, want %+v %+v", v, v.ImagePull, want, want.ImagePull)
			}
			again, err := s.Mounts(testContext(t), "ns/9/container")
			if err != nil || !reflect.DeepEqual(mounts, again) {
				t.Fatalf("Mounts gave %v, %v; Prepare gave %v", again, err, mounts)
			}
			view, err := s.View(testContext(t), "ns/10/view", on)
			if err != nil || !reflect.DeepEqual(mounts, view) {
				t.Fatalf("View gave %v, %v; Prepare gave %v", view, err, mounts)
			}
		})
	}
}

func TestLayerRecord(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	ctx := testContext(t)
	l := layerOf{chain: chainA.String(), image: app}
	name := pull(t, s, l)
	if again := pull(t, s, l); again != name {
		t.Fatalf("pulled again, the layer is %s, not %s", again, name)
	}
	info, err := s.Stat(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	want := l.labels()
	want[LabelMode] = string(ModeReference)
	if info.Kind != snapshots.KindCommitted || info.Parent != "" || !equalLabels(info.Labels, want) {
		t.Fatalf("got %+v, want labels %v", info, want)
	}
	if _, err := s.Stat(ctx, "ns/1/extract-1 "+l.chain); !errdefs.IsNotFound(err) {
		t.Fatalf("the key of the unpack is there: %v", err)
	}
	if u, err := s.Usage(ctx, name); err != nil || u != (snapshots.Usage{}) {
		t.Fatalf("usage %+v, %v", u, err)
	}
	if _, err := s.Mounts(ctx, name); !errdefs.IsFailedPrecondition(err) {
		t.Fatalf("mounts of a committed layer: %v", err)
	}
	prepare(t, s, "c", name)
	if u, err := s.Usage(ctx, "c"); err != nil || u != (snapshots.Usage{}) {
		t.Fatalf("usage of a container %+v, %v", u, err)
	}
	if dirs := snapshotDirs(t, root); len(dirs) != 0 {
		t.Fatalf("references made directories: %v", dirs)
	}
	if err := s.Remove(ctx, name); !errdefs.IsFailedPrecondition(err) {
		t.Fatalf("removing a layer under a container: %v", err)
	}
	for _, key := range []string{"c", name} {
		if err := s.Remove(ctx, key); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Remove(ctx, name); !errdefs.IsNotFound(err) {
		t.Fatalf("removing twice: %v", err)
	}
}

func TestModeSurvivesUpdate(t *testing.T) {
	s := open(t, t.TempDir())
	ctx := testContext(t)
	name := pull(t, s, layerOf{chain: chainA.String(), image: app})
	info, err := s.Update(ctx, snapshots.Info{Name: name, Labels: map[string]string{"x": "y", LabelMode: "passthrough"}})
	if err != nil || !equalLabels(info.Labels, map[string]string{"x": "y", LabelMode: "reference-only"}) {
		t.Fatalf("got %v, %v", info.Labels, err)
	}
	if v := theVolume(t, s, prepare(t, s, "c", name)); v.Source != app {
		t.Fatalf("source %q", v.Source)
	}
	if _, err := s.Update(ctx, snapshots.Info{Name: "nobody"}); !errdefs.IsNotFound(err) {
		t.Fatalf("update of an unknown snapshot: %v", err)
	}
}

func TestCommittedContainerKeepsItsImage(t *testing.T) {
	s := open(t, t.TempDir())
	name := pull(t, s, layerOf{chain: chainA.String(), image: app})
	prepare(t, s, "c", name)
	if err := s.Commit(testContext(t), "derived", "c"); err != nil {
		t.Fatal(err)
	}
	if v := theVolume(t, s, prepare(t, s, "d", "derived")); v.Source != app {
		t.Fatalf("source %q", v.Source)
	}
}

func TestExcludedImageOnReferenceIsRefused(t *testing.T) {
	s := open(t, t.TempDir(), passing(t, ModeReference, "*/pause:*"))
	base := pull(t, s, layerOf{chain: chainA.String(), image: app, above: 1})
	l := layerOf{chain: chainB.String(), parent: base, image: "registry.k8s.io/pause:3"}
	_, err := s.Prepare(testContext(t), "k", base, snapshots.WithLabels(l.labels()))
	if !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Fatalf("got %v", err)
	}
	if _, err := s.Stat(testContext(t), "k"); !errdefs.IsNotFound(err) {
		t.Fatalf("the refused snapshot is there: %v", err)
	}
}

func TestReferenceOnPassedThroughBase(t *testing.T) {
	s := open(t, t.TempDir(), passing(t, ModeReference, "*/base:*"))
	ctx := testContext(t)
	base := layerOf{chain: chainA.String(), image: "registry.example/base:1"}
	if _, err := s.Prepare(ctx, "extract", "", snapshots.WithLabels(base.labels())); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(ctx, "ns/2/"+base.chain, "extract", snapshots.WithLabels(base.labels())); err != nil {
		t.Fatal(err)
	}
	top := pull(t, s, layerOf{chain: chainB.String(), parent: "ns/2/" + base.chain, image: app})
	if v := theVolume(t, s, prepare(t, s, "c", top)); v.Source != app {
		t.Fatalf("source %q", v.Source)
	}
}

// An unpacked layer of one containerd namespace must not be found as the reference-only one of another.
func TestOverlayLayerIsNotFoundByReference(t *testing.T) {
	s := open(t, t.TempDir(), passing(t, ModeReference, "*/base:1"))
	ctx := testContext(t)
	excluded := layerOf{chain: chainA.String(), image: "registry.example/base:1"}
	if _, err := s.Prepare(ctx, "extract", "", snapshots.WithLabels(excluded.labels())); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(ctx, "a/2/"+excluded.chain, "extract", snapshots.WithLabels(excluded.labels())); err != nil {
		t.Fatal(err)
	}
	name := pull(t, s, layerOf{chain: chainA.String(), image: app})
	if v := theVolume(t, s, prepare(t, s, "c", name)); v.Source != app {
		t.Fatalf("source %q", v.Source)
	}
}

func TestSameLayerOnTwoParents(t *testing.T) {
	s := open(t, t.TempDir())
	one := pull(t, s, layerOf{chain: chainA.String(), image: app, above: 1})
	two := pull(t, s, layerOf{chain: chainA.String(), parent: one, image: app, above: 1})
	l := layerOf{chain: chainB.String(), image: app}
	for _, parent := range []string{one, two} {
		l.parent = parent
		name := pull(t, s, l)
		if v := theVolume(t, s, prepare(t, s, "c on "+parent, name)); v.Source != app {
			t.Fatalf("source %q on %s", v.Source, name)
		}
	}
}

func TestConcurrentPrepares(t *testing.T) {
	s := open(t, t.TempDir())
	ctx := testContext(t)
	const workers = 16
	l := layerOf{chain: chainA.String(), image: app}
	var wg sync.WaitGroup
	faults := make(chan error, 2*workers)
	for i := range workers {
		wg.Go(func() {
			_, err := s.Prepare(ctx, fmt.Sprintf("extract-%d", i), "", snapshots.WithLabels(l.labels()))
			if !errdefs.IsAlreadyExists(err) {
				faults <- fmt.Errorf("layer: %w", err)
			}
			name, _ := nameOf(l.labels())
			if _, err := s.Prepare(ctx, fmt.Sprintf("c-%d", i), name.String()); err != nil {
				faults <- fmt.Errorf("container: %w", err)
			}
		})
	}
	wg.Wait()
	close(faults)
	for err := range faults {
		t.Error(err)
	}
	find(t, s, l.chain, "")
	n := 0
	if err := s.Walk(ctx, func(context.Context, snapshots.Info) error { n++; return nil }); err != nil || n != workers+1 {
		t.Fatalf("%d snapshots, %v; want %d", n, err, workers+1)
	}
}

func TestMountIsMountable(t *testing.T) {
	require.Root(t)
	s := open(t, t.TempDir())
	name := pull(t, s, layerOf{chain: chainA.String(), image: app})
	target := t.TempDir()
	if err := mount.All(prepare(t, s, "c", name), target); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := mount.UnmountAll(target, 0); err != nil {
			t.Error(err)
		}
	})
	entries, err := os.ReadDir(target)
	if err != nil || len(entries) != 1 || entries[0].Name() != "etc" {
		t.Fatalf("the root holds %v, %v", entries, err)
	}
	if err := os.WriteFile(filepath.Join(target, "x"), nil, 0o600); !errors.Is(err, syscall.EROFS) {
		t.Fatalf("writing gave %v, want read-only file system", err)
	}
}

func TestStart(t *testing.T) {
	t.Parallel()
	t.Run("empty root that is not empty", func(t *testing.T) {
		root := t.TempDir()
		if err := os.MkdirAll(filepath.Join(root, "empty", "etc"), 0o755); err != nil {
			t.Fatal(err)
		}
		if _, err := New(testContext(t), root); !errdefs.IsFailedPrecondition(err) {
			t.Fatalf("got %v", err)
		}
	})
	t.Run("database held by another", func(t *testing.T) {
		root := t.TempDir()
		open(t, root)
		if _, err := New(testContext(t), root); err == nil {
			t.Fatal("two snapshotters opened one database")
		}
	})
	t.Run("damaged database", func(t *testing.T) {
		root := t.TempDir()
		if err := os.WriteFile(filepath.Join(root, "metadata.db"), make([]byte, 64<<10), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := New(testContext(t), root); err == nil {
			t.Fatal("a damaged database was opened")
		}
	})
	t.Run("nothing there yet", func(t *testing.T) {
		s := open(t, t.TempDir())
		if err := s.Walk(testContext(t), func(_ context.Context, i snapshots.Info) error { return errors.New(i.Name) }); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("directory that no record names", func(t *testing.T) {
		root := t.TempDir()
		s := open(t, root)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		for _, dir := range []string{"new-123", "77"} {
			if err := os.MkdirAll(filepath.Join(root, "snapshots", dir, "fs"), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		open(t, root)
		if dirs := snapshotDirs(t, root); len(dirs) != 0 {
			t.Fatalf("left %v", dirs)
		}
	})
}
