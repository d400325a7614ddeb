package snapshotter

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/coffer-project/coffer/integration/require"
	"github.com/coffer-project/coffer/proto/volume"
)

const encrypted = "application/vnd.oci.image.layer.v1.tar+encrypted"

func (n *node) mustPull(img image, reference string, wantFetched int) {
	n.t.Helper()
	fetched, err := n.pull(img, reference)
	if err != nil {
		n.t.Fatal(err)
	}
	if len(fetched) != wantFetched {
		n.t.Fatalf("containerd fetched %d layers, want %d", len(fetched), wantFetched)
	}
}

// container makes a container's snapshot through containerd and returns the volume in its mount.
func (n *node) container(id, parent string) *volume.Volume {
	n.t.Helper()
	mounts, err := n.sn.Prepare(n.ctx, id, parent)
	if err != nil {
		n.t.Fatal(err)
	}
	if len(mounts) != 1 {
		n.t.Fatalf("got mounts %v", mounts)
	}
	v, found, err := volume.FromOptions(mounts[0].Options)
	if err != nil || !found {
		n.t.Fatalf("volume of %v: found %v, %v", mounts, found, err)
	}
	return v
}

// backend lists what our database holds, by containerd's walk over the backend.
func (n *node) backend() (names []string) {
	n.t.Helper()
	n.stop()
	s := open(n.t, n.path("root"), n.opts...)
	err := s.Walk(n.ctx, func(_ context.Context, i snapshots.Info) error {
		names = append(names, i.Name)
		return nil
	})
	if err != nil {
		n.t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		n.t.Fatal(err)
	}
	n.start()
	return names
}

func TestPullFetchesNoLayer(t *testing.T) {
	for name, tc := range map[string]struct{ reference, wantSource string }{
		"with containerd's labels": {reference: app, wantSource: app},
		"without a reference":      {wantSource: volume.DummySource},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			img := n.image(encrypted, "one", "two", "three")
			n.mustPull(img, tc.reference, 0)
			n.mustPull(img, tc.reference, 0)
			v := n.container("c", img.top())
			if v.Source != tc.wantSource {
				t.Fatalf("source %q, want %q", v.Source, tc.wantSource)
			}
			if tc.reference != "" && v.ImagePull.Metadata[volume.MetadataManifestDigest] != img.manifest.Digest.String() {
				t.Fatalf("metadata %v", v.ImagePull.Metadata)
			}
			if got := n.backend(); len(got) != 4 {
				t.Fatalf("the backend holds %q, want 3 layers and a container", got)
			}
		})
	}
}

// An image whose layers another image has too: containerd asks for the layers above the shared ones only.
func TestImagesThatShareLayers(t *testing.T) {
	n := newNode(t)
	base, derived := n.image("", "one"), n.image("", "one", "two")
	n.mustPull(derived, "registry.example/derived:1", 0)
	n.mustPull(base, "registry.example/base:1", 0)
	if v := n.container("base", base.top()); v.Source != volume.DummySource {
		t.Fatalf("a container of the base image is told to run %q", v.Source)
	}
	if v := n.container("derived", derived.top()); v.Source != "registry.example/derived:1" {
		t.Fatalf("source %q", v.Source)
	}
}

func TestContainersAfterLostDatabase(t *testing.T) {
	n := newNode(t)
	img := n.image(encrypted, "one", "two")
	n.mustPull(img, app, 0)
	n.container("before", img.top())
	n.loseDatabase()

	if _, err := n.sn.Stat(n.ctx, img.top()); err != nil {
		t.Fatalf("containerd would unpack the image again: %v", err)
	}
	v := n.container("after", img.top())
	if v.Source != app || v.ImagePull.Metadata[volume.MetadataManifestDigest] != img.manifest.Digest.String() {
		t.Fatalf("got %+v", v)
	}
	// The same image again, and one that stands on its layers.
	n.mustPull(img, app, 0)
	more := n.image(encrypted, "one", "two", "three")
	n.mustPull(more, "registry.example/more:1", 0)
	if v := n.container("more", more.top()); v.Source != "registry.example/more:1" {
		t.Fatalf("source %q", v.Source)
	}
	// A container from before is removed although our database never heard of it.
	if err := n.sn.Remove(n.ctx, "before"); err != nil {
		t.Fatal(err)
	}
	if err := n.collect(n.ctx); err != nil {
		t.Fatal(err)
	}
}

// Another containerd namespace has the chain too; its unpack finds the recovered layer's facts on another parent.
func TestSecondNamespaceAfterLostDatabase(t *testing.T) {
	n := newNode(t)
	img := n.image("", "one", "two")
	n.mustPull(img, app, 0)
	n.loseDatabase()
	n.container("c", img.top())
	other := *n
	other.ctx = namespace(n.ctx, "default")
	again := other.image("", "one", "two")
	other.mustPull(again, app, 0)
	if v := other.container("c", again.top()); v.Source != app {
		t.Fatalf("source %q", v.Source)
	}
}

func TestGarbageCollection(t *testing.T) {
	n := newNode(t)
	img := n.image("", "one", "two")
	n.mustPull(img, app, 0)
	n.loseDatabase()
	if err := n.collect(n.ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := n.sn.Stat(n.ctx, img.top()); err != nil {
		t.Fatalf("collection took an image in use: %v", err)
	}
	n.forget()
	if err := n.collect(n.ctx); err != nil {
		t.Fatal(err)
	}
	if got := n.backend(); len(got) != 0 {
		t.Fatalf("collection left %q", got)
	}
}

func TestPassthrough(t *testing.T) {
	require.Root(t)
	const pause = "registry.k8s.io/pause:3.10"
	for name, tc := range map[string]struct {
		reference string
		without   Mode
	}{
		"excluded by pattern": {reference: pause, without: ModeReference},
		"without a reference": {without: ModeOverlay},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, passing(t, tc.without, "*/pause:*"))
			img := n.image("", "pause", "etc")
			n.mustPull(img, tc.reference, 2)
			n.holds("before", img.top(), "pause", "etc")
			n.mustPull(img, tc.reference, 0)
			n.loseDatabase()
			n.holds("after", img.top(), "pause", "etc")
			n.mustPull(img, tc.reference, 0)
			// A container from before keeps its directory: its name is known again.
			if _, err := n.sn.Mounts(n.ctx, "before"); err != nil {
				t.Fatal(err)
			}
			n.forget()
			for _, c := range []string{"before", "after"} {
				if err := n.sn.Remove(n.ctx, c); err != nil {
					t.Fatal(err)
				}
			}
			if err := n.collect(n.ctx); err != nil {
				t.Fatal(err)
			}
			if dirs := snapshotDirs(t, n.path("root")); len(dirs) != 0 {
				t.Fatalf("collection left %v", dirs)
			}
		})
	}
}

// An encrypted image that is to pass through cannot: containerd has no way to unpack it, and says so.
func TestEncryptedImageCannotPassThrough(t *testing.T) {
	require.Root(t)
	n := newNode(t, passing(t, ModeOverlay))
	img := n.image(encrypted, "one")
	_, err := n.pull(img, "")
	if err == nil || !strings.Contains(err.Error(), encrypted) {
		t.Fatalf("got %v, want an error that names the media type", err)
	}
	if err := n.collect(n.ctx); err != nil {
		t.Fatal(err)
	}
	if dirs := snapshotDirs(t, n.path("root")); len(dirs) != 0 {
		t.Fatalf("left %v", dirs)
	}
}

// holds mounts a new container and checks that its root has just the given files.
func (n *node) holds(id, parent string, files ...string) {
	n.t.Helper()
	mounts, err := n.sn.Prepare(n.ctx, id, parent)
	if err != nil {
		n.t.Fatal(err)
	}
	err = mount.WithTempMount(n.ctx, mounts, func(root string) error {
		for _, f := range files {
			raw, err := os.ReadFile(filepath.Join(root, f))
			if err != nil {
				return err
			}
			if string(raw) != f {
				n.t.Errorf("%s holds %q", f, raw)
			}
		}
		return os.WriteFile(filepath.Join(root, "written"), nil, 0o600)
	})
	if err != nil {
		n.t.Fatal(err)
	}
}
