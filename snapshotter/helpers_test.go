package snapshotter

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	snlabels "github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/log/logtest"
	"github.com/opencontainers/go-digest"

	"github.com/coffer-project/coffer/proto/volume"
)

func testContext(tb testing.TB) context.Context {
	tb.Helper()
	return log.WithLogger(logtest.WithT(tb.Context(), tb), log.G(logtest.WithT(tb.Context(), tb)))
}

func open(tb testing.TB, root string, opts ...Opt) *Snapshotter {
	tb.Helper()
	s, err := New(testContext(tb), root, opts...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Close(); err != nil {
			tb.Error(err)
		}
	})
	return s
}

func passing(tb testing.TB, without Mode, patterns ...string) Opt {
	tb.Helper()
	rules, err := NewRules(patterns, without)
	if err != nil {
		tb.Fatal(err)
	}
	return WithRules(rules)
}

// layerOf is a layer of an image as containerd announces it.
type layerOf struct {
	chain, parent string
	image         string
	// above is the number of layers that the image has on top of this one.
	above int
}

func (l layerOf) labels() map[string]string {
	labels := map[string]string{snapshots.LabelSnapshotRef: l.chain, snapshots.LabelSnapshotDiffID: digest.FromString(l.chain).String()}
	if l.image == "" {
		return labels
	}
	labels[snlabels.TargetRefLabel] = l.image
	labels[snlabels.TargetManifestDigestLabel] = manifestOf(l.image)
	labels[snlabels.TargetLayerDigestLabel] = blobOf(l.chain)
	layers := blobOf(l.chain)
	for range l.above {
		layers += "," + blobOf("another")
	}
	labels[snlabels.TargetImageLayersLabel] = layers
	return labels
}

func manifestOf(image string) string { return digest.FromString("manifest of " + image).String() }
func blobOf(chain string) string     { return digest.FromString("blob of " + chain).String() }

// pull announces a layer and returns the name that containerd would find it under.
func pull(tb testing.TB, s *Snapshotter, l layerOf) string {
	tb.Helper()
	_, err := s.Prepare(testContext(tb), "ns/1/extract-1 "+l.chain, l.parent, snapshots.WithLabels(l.labels()))
	if !errdefs.IsAlreadyExists(err) {
		tb.Fatalf("prepare layer %s: %v, want already exists", l.chain, err)
	}
	return find(tb, s, l.chain, l.parent)
}

// find does what containerd does after AlreadyExists.
func find(tb testing.TB, s *Snapshotter, chain, parent string) string {
	tb.Helper()
	var names []string
	filter := `labels."` + snapshots.LabelSnapshotRef + `"==` + chain + `,parent=="` + parent + `"`
	err := s.Walk(testContext(tb), func(_ context.Context, i snapshots.Info) error {
		if i.Kind == snapshots.KindCommitted {
			names = append(names, i.Name)
		}
		return nil
	}, filter)
	if err != nil {
		tb.Fatal(err)
	}
	if len(names) != 1 {
		tb.Fatalf("containerd finds %q for layer %s on %q, want one name", names, chain, parent)
	}
	return names[0]
}

// theVolume checks that mounts are the reference-only mount and returns its document.
func theVolume(tb testing.TB, s *Snapshotter, mounts []mount.Mount) *volume.Volume {
	tb.Helper()
	if len(mounts) != 1 {
		tb.Fatalf("got mounts %v, want one", mounts)
	}
	m := mounts[0]
	if m.Type != "bind" || filepath.Dir(m.Source) != s.hostRoots.dir || m.Target != "" || len(m.Options) != 3 || m.Options[0] != "rbind" || m.Options[1] != "ro" {
		tb.Fatalf("got mount %+v", m)
	}
	v, found, err := volume.FromOptions(m.Options)
	if err != nil || !found {
		tb.Fatalf("read volume: %v, found %v", err, found)
	}
	return v
}

// prepare makes a container's snapshot.
func prepare(tb testing.TB, s *Snapshotter, key, parent string) []mount.Mount {
	tb.Helper()
	mounts, err := s.Prepare(testContext(tb), key, parent)
	if err != nil {
		tb.Fatal(err)
	}
	return mounts
}

func snapshotDirs(tb testing.TB, root string) []string {
	tb.Helper()
	dirs, err := filepath.Glob(filepath.Join(root, "snapshots", "*"))
	if err != nil {
		tb.Fatal(err)
	}
	return dirs
}
