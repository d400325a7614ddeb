package snapshotter

import (
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-project/coffer/integration/require"
	"github.com/coffer-project/coffer/proto/volume"
	"github.com/coffer-project/coffer/snapshotter/images"
)

// mirrored is a name as mirrors give it; no pattern would find it.
const mirrored = "registry.example/infra/sandbox@sha256:d1"

// pauseImage is as Kubernetes makes it, of one layer with the given chain ID.
func pauseImage(chain digest.Digest) *images.Image {
	return &images.Image{
		Manifest: digest.Digest(manifestOf(mirrored)), Chains: []digest.Digest{chain},
		Layers: []images.Layer{{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromString("blob"), Size: 320 << 10}},
		Config: ocispec.ImageConfig{User: "65535:65535", Entrypoint: []string{"/pause"}},
	}
}

// TestPauseImageIsUnpacked: a pause image is, whatever it is called, and no image that is meant for guests.
func TestPauseImageIsUnpacked(t *testing.T) {
	tests := map[string]struct {
		edit    func(*images.Image)
		unnamed bool
		pulled  bool
		opts    []Opt
		err     error
		want    Mode
	}{
		"pause image":           {want: ModeOverlay},
		"in another folder":     {edit: func(i *images.Image) { i.Config.Entrypoint = []string{"/usr/bin/pause"} }, want: ModeOverlay},
		"another program":       {edit: func(i *images.Image) { i.Config.Entrypoint = []string{"/app"} }, want: ModeReference},
		"no program":            {edit: func(i *images.Image) { i.Config.Entrypoint = nil }, want: ModeReference},
		"a script of a shell's": {edit: func(i *images.Image) { i.Config.Entrypoint = []string{"/pause", "/model"} }, want: ModeReference},
		"with arguments":        {edit: func(i *images.Image) { i.Config.Cmd = []string{"/model"} }, want: ModeReference},
		"encrypted":             {edit: func(i *images.Image) { i.Layers[0].MediaType += "+encrypted" }, want: ModeReference},
		"marked by a label":     {edit: func(i *images.Image) { i.Config.Labels = map[string]string{LabelGuestOnly: "true"} }, want: ModeReference},
		"marked by annotation":  {edit: func(i *images.Image) { i.Annotations = map[string]string{LabelGuestOnly: ""} }, want: ModeReference},
		"too large":             {edit: func(i *images.Image) { i.Layers[0].Size = maxPauseImage + 1 }, want: ModeReference},
		"too large together": {edit: func(i *images.Image) {
			i.Layers[0].Size = maxPauseImage/2 + 1
			i.Layers = append(i.Layers, i.Layers[0])
		}, want: ModeReference},
		"of a size that is none":    {edit: func(i *images.Image) { i.Layers[0].Size = -1 }, want: ModeReference},
		"switched off":              {opts: []Opt{func(o *options) { o.unpackPause = false }}, want: ModeReference},
		"containerd is away":        {err: errdefs.ErrUnavailable, want: ModeReference},
		"unnamed, being pulled":     {unnamed: true, want: ModeOverlay},
		"unnamed, was pulled":       {unnamed: true, pulled: true, want: ModeReference},
		"unnamed and another image": {unnamed: true, edit: func(i *images.Image) { i.Config.Entrypoint = []string{"/app"} }, want: ModeReference},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			image := pauseImage(chainA)
			if tc.edit != nil {
				tc.edit(image)
			}
			containerd := &fakeImages{images: []*images.Image{image}, err: tc.err}
			if tc.pulled {
				containerd.records = []images.Record{{Name: mirrored, Target: image.Manifest}}
			}
			s := open(t, t.TempDir(), append([]Opt{WithImages(containerd), WithPauseImages()}, tc.opts...)...)
			layer := layerOf{chain: chainA.String(), image: mirrored}
			if tc.unnamed {
				layer.image = ""
			}
			mounts, err := s.Prepare(testContext(t), "ns/1/extract-1 "+layer.chain, "", snapshots.WithLabels(layer.labels()))
			switch {
			case tc.want == ModeReference && !errdefs.IsAlreadyExists(err):
				t.Fatalf("got %v, %v; want the layer to be left to guests", mounts, err)
			case tc.want == ModeOverlay && (err != nil || len(mounts) == 0):
				t.Fatalf("got %v, %v; want a place to unpack the layer to", mounts, err)
			}
		})
	}
}

// TestPauseImageOnAReference: what lies on a reference is one, so that no container gets a root with holes.
func TestPauseImageOnAReference(t *testing.T) {
	image := pauseImage(chainB)
	s := open(t, t.TempDir(), WithImages(&fakeImages{images: []*images.Image{image}}), WithPauseImages())
	base := pull(t, s, layerOf{chain: chainA.String(), image: app, above: 1})
	pull(t, s, layerOf{chain: chainB.String(), parent: base, image: mirrored})
}

// TestMountsOfAnUnpackedImage: a guest gets a reference to an image that the host has unpacked, by tag and digest where
// containerd knows them; runc gets the files, as ever.
func TestMountsOfAnUnpackedImage(t *testing.T) {
	require.Root(t)
	image := pauseImage(chainA)
	containers := map[string]images.Container{
		"guest": {Image: mirrored, Runtime: "io.containerd.coffer.v2"},
		"kata":  {Image: mirrored, Runtime: "io.containerd.kata-qemu-snp.v2"},
		"moved": {Image: "registry.example/moved:1", Runtime: "io.containerd.coffer.v2"},
		"runc":  {Image: mirrored, Runtime: "io.containerd.runc.v2"},
		"other": {Image: mirrored, Runtime: "io.example.v1"},
	}
	containerd := &fakeImages{images: []*images.Image{image}, containers: containers, records: []images.Record{{Name: mirrored, Target: image.Manifest}}}
	root := t.TempDir()
	s, err := New(testContext(t), root, WithImages(containerd), passing(t, ModeReference, mirrored))
	if err != nil {
		t.Fatal(err)
	}
	layer := layerOf{chain: chainA.String(), image: mirrored}
	key := "k8s.io/1/extract-1 " + layer.chain
	if _, err := s.Prepare(testContext(t), key, "", snapshots.WithLabels(layer.labels())); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(testContext(t), "k8s.io/2/"+layer.chain, key); err != nil {
		t.Fatal(err)
	}
	ids := []string{"guest", "kata", "moved", "runc", "other", "not-recorded"}
	for _, id := range ids {
		if mounts := prepare(t, s, "k8s.io/3/"+id, "k8s.io/2/"+layer.chain); mounts[0].Type != "overlay" {
			t.Errorf("before container %s is recorded: mounts %v", id, mounts)
		}
	}
	for range 2 { // and again after a restart
		for _, id := range ids {
			mounts, err := s.Mounts(testContext(t), "k8s.io/3/"+id)
			if err != nil {
				t.Fatal(err)
			}
			checkUnpacked(t, id, mounts, image)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open(t, root, WithImages(containerd), passing(t, ModeReference, mirrored))
	}
}

func checkUnpacked(t *testing.T, id string, mounts []mount.Mount, image *images.Image) {
	t.Helper()
	if id == "runc" || id == "other" || id == "not-recorded" {
		if mounts[0].Type != "overlay" {
			t.Errorf("container %s: mounts %v, want the image's files", id, mounts)
		}
		return
	}
	v, found, err := volume.FromOptions(mounts[0].Options)
	if err != nil || !found || mounts[0].Type != "bind" {
		t.Fatalf("container %s: mounts %v, want a reference", id, mounts)
	}
	want, digest := mirrored, image.Manifest.String()
	if id == "moved" {
		want, digest = volume.DummySource, ""
	}
	if got := v.ImagePull.Metadata[volume.MetadataManifestDigest]; v.Source != want || got != digest {
		t.Errorf("container %s: the guest is to pull %s by %q, want %s by %q", id, v.Source, got, want, digest)
	}
}
