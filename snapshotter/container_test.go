package snapshotter

import (
	"errors"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/coffer-project/coffer/proto/volume"
	"github.com/coffer-project/coffer/snapshotter/images"
)

// TestMountsNameTheContainersImage: what containerd records of a container says more than its snapshot, which remembers
// the image that brought its layers.
func TestMountsNameTheContainersImage(t *testing.T) {
	const other = "registry.example/other:1"
	manifest := digest.FromString("manifest")
	image := &images.Image{Manifest: manifest, Chains: []digest.Digest{chainA}, Layers: []images.Layer{{Digest: digest.FromString("layer")}}}
	moved := &images.Image{Manifest: digest.FromString("moved"), Chains: []digest.Digest{chainB}, Layers: []images.Layer{{}}}
	tests := map[string]struct {
		container    images.Container
		unknown      bool
		err          error
		wantSource   string
		wantManifest string
		wantErr      error
	}{
		"another image with its layers": {
			container:  images.Container{Image: other, Runtime: "io.containerd.coffer.v2"},
			wantSource: other, wantManifest: manifest.String(),
		},
		"not recorded yet":      {unknown: true, wantSource: app, wantManifest: manifestOf(app)},
		"without an image":      {container: images.Container{Runtime: "io.containerd.coffer.v2"}, wantSource: app, wantManifest: manifestOf(app)},
		"an image that is gone": {container: images.Container{Image: "registry.example/gone:1"}, wantSource: app, wantManifest: manifestOf(app)},
		"a name that has moved": {container: images.Container{Image: "registry.example/moved:1"}, wantSource: app, wantManifest: manifestOf(app)},
		"a name of great length": {
			container: images.Container{Image: other + strings.Repeat("x", maxReference)}, wantSource: app, wantManifest: manifestOf(app),
		},
		"containerd is away":    {container: images.Container{Image: other}, err: errdefs.ErrUnavailable, wantSource: app, wantManifest: manifestOf(app)},
		"a runtime of the host": {container: images.Container{Image: other, Runtime: "io.containerd.runc.v2"}, wantErr: errdefs.ErrFailedPrecondition},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			containerd := &fakeImages{
				images: []*images.Image{image, moved}, containers: map[string]images.Container{"c1": tc.container},
				records: []images.Record{{Name: other, Target: manifest}, {Name: "registry.example/moved:1", Target: moved.Manifest}},
			}
			if tc.unknown {
				containerd.containers = nil
			}
			s := open(t, t.TempDir(), WithImages(containerd))
			layer := pull(t, s, layerOf{chain: chainA.String(), image: app})
			prepare(t, s, "k8s.io/7/c1", layer)
			containerd.err = tc.err
			mounts, err := s.Mounts(testContext(t), "k8s.io/7/c1")
			if !errors.Is(err, tc.wantErr) {
				t.Fatalf("got %v, want %v", err, tc.wantErr)
			}
			if err != nil {
				if !strings.Contains(err.Error(), "runtimeClassName") || !strings.Contains(err.Error(), other) {
					t.Errorf("the error does not say what to do: %v", err)
				}
				return
			}
			v, found, err := volume.FromOptions(mounts[0].Options)
			if err != nil || !found {
				t.Fatal(err)
			}
			if got := v.ImagePull.Metadata[volume.MetadataManifestDigest]; v.Source != tc.wantSource || got != tc.wantManifest {
				t.Errorf("the guest is to pull %s by %s, want %s by %s", v.Source, got, tc.wantSource, tc.wantManifest)
			}
		})
	}
}
