package snapshotter

import (
	"context"
	"os"
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

// requireRoot skips a test that mounts.
func requireRoot(t testing.TB) {
	t.Helper()
	reason := ""
	switch {
	case os.Getenv("COFFER_TEST_TIER") == "unit":
		reason = "COFFER_TEST_TIER=unit: tests that mount are not run"
	case os.Geteuid() != 0:
		reason = "mounting needs root: run make test as root"
	default:
		return
	}
	if os.Getenv("COFFER_REQUIRE") != "" {
		t.Fatal(reason)
	}
	t.Skip(reason)
}

func testContext(t testing.TB) context.Context {
	return log.WithLogger(logtest.WithT(t.Context(), t), log.G(logtest.WithT(t.Context(), t)))
}

func open(t testing.TB, root string, opts ...Opt) *Snapshotter {
	t.Helper()
	s, err := New(testContext(t), root, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func passing(t testing.TB, without Mode, patterns ...string) Opt {
	t.Helper()
	rules, err := NewRules(patterns, without)
	if err != nil {
		t.Fatal(err)
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
func pull(t testing.TB, s *Snapshotter, l layerOf) string {
	t.Helper()
	_, err := s.Prepare(testContext(t), "ns/1/extract-1 "+l.chain, l.parent, snapshots.WithLabels(l.labels()))
	if !errdefs.IsAlreadyExists(err) {
		t.Fatalf("prepare layer %s: %v, want already exists", l.chain, err)
	}
	return find(t, s, l.chain, l.parent)
}

// find does what containerd does after AlreadyExists.
func find(t testing.TB, s *Snapshotter, chain, parent string) string {
	t.Helper()
	var names []string
	filter := `labels."` + snapshots.LabelSnapshotRef + `"==` + chain + `,parent=="` + parent + `"`
	err := s.Walk(testContext(t), func(_ context.Context, i snapshots.Info) error {
		if i.Kind == snapshots.KindCommitted {
			names = append(names, i.Name)
		}
		return nil
	}, filter)
	if err != nil {
		t.Fatal(err)
	}
	if len(names) != 1 {
		t.Fatalf("containerd finds %q for layer %s on %q, want one name", names, chain, parent)
	}
	return names[0]
}

// theVolume checks that mounts are the reference-only mount and returns its document.
func theVolume(t testing.TB, s *Snapshotter, mounts []mount.Mount) *volume.Volume {
	t.Helper()
	if len(mounts) != 1 {
		t.Fatalf("got mounts %v, want one", mounts)
	}
	m := mounts[0]
	if m.Type != "bind" || m.Source != s.empty || m.Target != "" || len(m.Options) != 3 || m.Options[0] != "rbind" || m.Options[1] != "ro" {
		t.Fatalf("got mount %+v", m)
	}
	v, found, err := volume.FromOptions(m.Options)
	if err != nil || !found {
		t.Fatalf("read volume: %v, found %v", err, found)
	}
	return v
}

// prepare makes a container's snapshot.
func prepare(t testing.TB, s *Snapshotter, key, parent string) []mount.Mount {
	t.Helper()
	mounts, err := s.Prepare(testContext(t), key, parent)
	if err != nil {
		t.Fatal(err)
	}
	return mounts
}

func snapshotDirs(t testing.TB, root string) []string {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(root, "snapshots", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return dirs
}
