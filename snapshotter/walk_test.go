package snapshotter

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/coffer-project/coffer/integration/require"
)

// TestWalkFilters finds snapshots of both modes by what containerd and admins filter by.
func TestWalkFilters(t *testing.T) {
	s := open(t, t.TempDir())
	ctx := testContext(t)
	base := pull(t, s, layerOf{chain: chainA.String(), image: app, above: 1})
	chainTop := digest.FromString("top").String()
	top := pull(t, s, layerOf{chain: chainTop, parent: base, image: app})
	prepare(t, s, "c", top)
	if _, err := s.View(ctx, "v", top, snapshots.WithLabels(map[string]string{"team": "green"})); err != nil {
		t.Fatal(err)
	}
	prepare(t, s, "scratch", "") // of no image, so an overlay snapshot
	for filter, want := range map[string][]string{
		"kind==committed":     {base, top},
		"kind==active":        {"c", "scratch"},
		"kind==view":          {"v"},
		"parent==" + `""`:     {base, "scratch"},
		"name==c":             {"c"},
		"labels.team==green":  {"v"},
		"labels.team==yellow": nil,
		`labels."` + LabelMode + `"==` + string(ModeReference):     {base, "c", top, "v"},
		`labels."` + snapshots.LabelSnapshotRef + `"==` + chainTop: {top},
	} {
		var got []string
		err := s.Walk(ctx, func(_ context.Context, i snapshots.Info) error {
			got = append(got, i.Name)
			return nil
		}, filter)
		slices.Sort(got)
		slices.Sort(want)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: got %q, %v; want %q", filter, got, err, want)
		}
	}
	if err := s.Walk(ctx, func(context.Context, snapshots.Info) error { return nil }, "==="); err == nil {
		t.Error("a filter that is none was accepted")
	}
	boom := errors.New("boom")
	if err := s.Walk(ctx, func(context.Context, snapshots.Info) error { return boom }); !errors.Is(err, boom) {
		t.Errorf("the walk went on: %v", err)
	}
}

// TestUpdateOneLabel changes labels one at a time, as containerd does when it marks images for its garbage collector.
func TestUpdateOneLabel(t *testing.T) {
	s := open(t, t.TempDir())
	ctx := testContext(t)
	l := layerOf{chain: chainA.String(), image: app}
	name := pull(t, s, l)
	want := l.labels()
	want[LabelMode], want["a"] = string(ModeReference), "1"
	info, err := s.Update(ctx, snapshots.Info{Name: name, Labels: map[string]string{"a": "1", "b": "2"}}, "labels.a")
	if err != nil || !equalLabels(info.Labels, want) {
		t.Errorf("got %v, %v; want %v", info.Labels, err, want)
	}
	delete(want, "a")
	if info, err = s.Update(ctx, snapshots.Info{Name: name}, "labels.a"); err != nil || !equalLabels(info.Labels, want) {
		t.Errorf("got %v, %v; want %v", info.Labels, err, want)
	}
	if _, err := s.Update(ctx, snapshots.Info{Name: name, Parent: "x"}, "parent"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("the parent was changed: %v", err)
	}
}

// TestRemoveFromTheTop: an image goes layer by layer, and a view holds it like a container.
func TestRemoveFromTheTop(t *testing.T) {
	s := open(t, t.TempDir())
	ctx := testContext(t)
	base := pull(t, s, layerOf{chain: chainA.String(), image: app, above: 1})
	top := pull(t, s, layerOf{chain: digest.FromString("top").String(), parent: base, image: app})
	if _, err := s.View(ctx, "v", top); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(ctx, "derived", "v"); err == nil {
		t.Error("a view was committed")
	}
	for _, held := range []string{base, top} {
		if err := s.Remove(ctx, held); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("remove %s under others: %v", held, err)
		}
	}
	for _, key := range []string{"v", top, base} {
		if err := s.Remove(ctx, key); err != nil {
			t.Error(err)
		}
	}
	// Nothing of it is remembered: the same image can come again.
	pull(t, s, layerOf{chain: chainA.String(), image: app})
}

// TestForeignUnpack: clients that unpack by themselves want to write, and take AlreadyExists for a key to be changed.
func TestForeignUnpack(t *testing.T) {
	s := open(t, t.TempDir())
	base := pull(t, s, layerOf{chain: chainA.String(), image: app, above: 1})
	_, err := s.Prepare(testContext(t), "default/7/extract-123-abc= "+digest.FromString("top").String(), base)
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "--local") {
		t.Errorf("unpack on a reference: %v", err)
	}
	prepare(t, s, "default/8/extract-of-roses", base) // a container may be called what it likes
}

// TestCleanup removes a directory that nobody knows and leaves those of living snapshots, and the empty root, alone.
func TestCleanup(t *testing.T) {
	require.Root(t)
	root := t.TempDir()
	s := open(t, root)
	ctx := testContext(t)
	prepare(t, s, "scratch", "")
	prepare(t, s, "c", pull(t, s, layerOf{chain: chainA.String(), image: app}))
	alive := snapshotDirs(t, root)
	if err := os.MkdirAll(filepath.Join(root, "snapshots", "4711", "fs"), 0o700); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Cleanup(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if left := snapshotDirs(t, root); len(alive) != 1 || !slices.Equal(left, alive) {
		t.Errorf("directories are %q, want %q", left, alive)
	}
	mounts, err := s.Mounts(ctx, "c")
	if err != nil {
		t.Fatal(err)
	}
	theVolume(t, s, mounts)
}
