package verify

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	rt "github.com/coffer-project/coffer/integration/registrytest"
)

func layer() []rt.Layer {
	return []rt.Layer{rt.NewLayer(rt.Gzip, rt.Entry{Name: "f", Body: "x"})}
}

func TestManifest(t *testing.T) {
	plain := func(edit func(*ocispec.Manifest)) []byte { return rt.NewImage(layer(), nil, edit).Raw }
	index := rt.NewIndex(map[string]*rt.Image{"linux/amd64": rt.NewImage(layer(), nil, nil)}).Raw
	cases := map[string]struct {
		raw     []byte
		wantErr error
	}{
		"good":          {raw: plain(nil)},
		"no media type": {raw: plain(func(m *ocispec.Manifest) { m.MediaType = "" })},
		"docker": {raw: plain(func(m *ocispec.Manifest) {
			m.MediaType, m.Config.MediaType = "application/vnd.docker.distribution.manifest.v2+json", "application/vnd.docker.container.image.v1+json"
			m.Layers[0].MediaType = "application/vnd.docker.image.rootfs.diff.tar.gzip"
		})},
		"encrypted zstd":     {raw: plain(func(m *ocispec.Manifest) { m.Layers[0].MediaType = ocispec.MediaTypeImageLayerZstd + "+encrypted" })},
		"index":              {raw: index, wantErr: errdefs.ErrInvalidArgument},
		"unknown layer type": {raw: plain(func(m *ocispec.Manifest) { m.Layers[0].MediaType = "application/x" }), wantErr: errdefs.ErrNotImplemented},
		"artifact":           {raw: plain(func(m *ocispec.Manifest) { m.Config.MediaType = "application/vnd.oci.empty.v1+json" }), wantErr: errdefs.ErrNotImplemented},
		"other media type":   {raw: plain(func(m *ocispec.Manifest) { m.MediaType = "application/json" }), wantErr: errdefs.ErrNotImplemented},
		"says it is an index": {raw: plain(func(m *ocispec.Manifest) { m.MediaType = ocispec.MediaTypeImageIndex }),
			wantErr: errdefs.ErrInvalidArgument},
		"no size":           {raw: plain(func(m *ocispec.Manifest) { m.Layers[0].Size = 0 }), wantErr: errdefs.ErrInvalidArgument},
		"negative size":     {raw: plain(func(m *ocispec.Manifest) { m.Layers[0].Size = -1 }), wantErr: errdefs.ErrInvalidArgument},
		"absurd size":       {raw: plain(func(m *ocispec.Manifest) { m.Layers[0].Size = 1 << 60 }), wantErr: errdefs.ErrInvalidArgument},
		"large config":      {raw: plain(func(m *ocispec.Manifest) { m.Config.Size = 1 << 30 }), wantErr: errdefs.ErrInvalidArgument},
		"malformed digest":  {raw: plain(func(m *ocispec.Manifest) { m.Layers[0].Digest = "sha256:../x" }), wantErr: errdefs.ErrInvalidArgument},
		"unknown algorithm": {raw: plain(func(m *ocispec.Manifest) { m.Layers[0].Digest = digest.Digest("md5:" + strings.Repeat("0", 32)) }), wantErr: errdefs.ErrInvalidArgument},
		"too many layers": {raw: plain(func(m *ocispec.Manifest) {
			for range 300 {
				m.Layers = append(m.Layers, m.Layers[0])
			}
		}), wantErr: errdefs.ErrInvalidArgument},
		"schema 1":            {raw: []byte(`{"schemaVersion":1,"fsLayers":[{}]}`), wantErr: errdefs.ErrNotImplemented},
		"schema 3":            {raw: []byte(`{"schemaVersion":3}`), wantErr: errdefs.ErrInvalidArgument},
		"index and manifest":  {raw: []byte(`{"schemaVersion":2,"layers":[{}],"manifests":[{}]}`), wantErr: errdefs.ErrInvalidArgument},
		"no JSON":             {raw: []byte("<html>"), wantErr: errdefs.ErrInvalidArgument},
		"JSON and more":       {raw: append(plain(nil), "{}"...), wantErr: errdefs.ErrInvalidArgument},
		"empty":               {wantErr: errdefs.ErrInvalidArgument},
		"larger than allowed": {raw: append(plain(nil), make([]byte, 5<<20)...), wantErr: errdefs.ErrInvalidArgument},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := New(DefaultLimits()).Manifest(tc.raw)
			if tc.wantErr == nil && err != nil || !errors.Is(err, tc.wantErr) {
				t.Fatalf("got %v, want %v", err, tc.wantErr)
			}
		})
	}
}

func TestChoose(t *testing.T) {
	image := func() *rt.Image { return rt.NewImage(layer(), nil, nil) }
	index := func(edit func(*ocispec.Index)) []byte {
		var out ocispec.Index
		if err := json.Unmarshal(rt.NewIndex(map[string]*rt.Image{"linux/amd64": image(), "linux/arm64": image()}).Raw, &out); err != nil {
			t.Fatal(err)
		}
		if edit != nil {
			edit(&out)
		}
		raw, err := json.Marshal(out)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	cases := map[string]struct {
		raw       []byte
		platform  string
		wantIndex bool
		wantErr   error
	}{
		"manifest":             {raw: image().Raw, platform: "linux/amd64"},
		"amd64":                {raw: index(nil), platform: "linux/amd64", wantIndex: true},
		"arm64 with variant":   {raw: index(nil), platform: "linux/arm64/v8", wantIndex: true},
		"none":                 {raw: index(nil), platform: "linux/s390x", wantIndex: true, wantErr: errdefs.ErrNotFound},
		"malformed platform":   {raw: index(nil), platform: "linux/amd64/v1/x/y", wantIndex: true, wantErr: errdefs.ErrInvalidArgument},
		"empty index":          {raw: index(func(i *ocispec.Index) { i.Manifests = nil }), platform: "linux/amd64", wantIndex: true, wantErr: errdefs.ErrNotFound},
		"no platforms":         {raw: index(func(i *ocispec.Index) { i.Manifests[0].Platform, i.Manifests[1].Platform = nil, nil }), platform: "linux/amd64", wantIndex: true, wantErr: errdefs.ErrNotFound},
		"index in the index":   {raw: index(func(i *ocispec.Index) { i.Manifests[0].MediaType = ocispec.MediaTypeImageIndex }), platform: "linux/amd64", wantIndex: true, wantErr: errdefs.ErrNotFound},
		"malformed digest":     {raw: index(func(i *ocispec.Index) { i.Manifests[0].Digest = "x" }), platform: "linux/amd64", wantIndex: true, wantErr: errdefs.ErrInvalidArgument},
		"manifest of 1 GiB":    {raw: index(func(i *ocispec.Index) { i.Manifests[0].Size = 1 << 30 }), platform: "linux/amd64", wantIndex: true, wantErr: errdefs.ErrInvalidArgument},
		"says it's a manifest": {raw: index(func(i *ocispec.Index) { i.MediaType = ocispec.MediaTypeImageManifest }), platform: "linux/amd64", wantErr: errdefs.ErrInvalidArgument},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			desc, isIndex, err := New(DefaultLimits()).Choose(tc.raw, tc.platform)
			if tc.wantErr != nil {
				if !errors.Is(err, tc.wantErr) {
					t.Fatalf("got %v, want %v", err, tc.wantErr)
				}
				return
			}
			if err != nil || isIndex != tc.wantIndex {
				t.Fatalf("got %t, %v", isIndex, err)
			}
			if isIndex && !strings.HasPrefix(tc.platform, desc.Platform.OS+"/"+desc.Platform.Architecture) {
				t.Errorf("chose %+v", desc.Platform)
			}
		})
	}
}

func TestConfig(t *testing.T) {
	config := func(edit func(*ocispec.Image)) []byte {
		img := rt.NewImage(layer(), edit, nil)
		return img.Blobs[img.Manifest.Config.Digest]
	}
	cases := map[string]struct {
		raw     []byte
		wantErr error
	}{
		"good":                {raw: config(nil)},
		"no architecture":     {raw: config(func(c *ocispec.Image) { c.Architecture = "" })},
		"other architecture":  {raw: config(func(c *ocispec.Image) { c.Architecture = "riscv64" }), wantErr: errdefs.ErrInvalidArgument},
		"other system":        {raw: config(func(c *ocispec.Image) { c.OS = "windows" }), wantErr: errdefs.ErrInvalidArgument},
		"too few diff ids":    {raw: config(func(c *ocispec.Image) { c.RootFS.DiffIDs = nil }), wantErr: errdefs.ErrInvalidArgument},
		"too many diff ids":   {raw: config(func(c *ocispec.Image) { c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, c.RootFS.DiffIDs[0]) }), wantErr: errdefs.ErrInvalidArgument},
		"malformed diff id":   {raw: config(func(c *ocispec.Image) { c.RootFS.DiffIDs[0] = "sha256:x" }), wantErr: errdefs.ErrInvalidArgument},
		"other rootfs":        {raw: config(func(c *ocispec.Image) { c.RootFS.Type = "magic" }), wantErr: errdefs.ErrInvalidArgument},
		"no JSON":             {raw: []byte("x"), wantErr: errdefs.ErrInvalidArgument},
		"larger than allowed": {raw: make([]byte, 5<<20), wantErr: errdefs.ErrInvalidArgument},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := New(DefaultLimits()).Config(tc.raw, 1, "linux/amd64")
			if tc.wantErr == nil && err != nil || !errors.Is(err, tc.wantErr) {
				t.Fatalf("got %v, want %v", err, tc.wantErr)
			}
		})
	}
}

func FuzzDocuments(f *testing.F) {
	img := rt.NewImage(layer(), nil, nil)
	f.Add(img.Raw)
	f.Add(img.Blobs[img.Manifest.Config.Digest])
	f.Add(rt.NewIndex(map[string]*rt.Image{"linux/amd64": img}).Raw)
	limits := DefaultLimits()
	f.Fuzz(func(t *testing.T, raw []byte) {
		v := New(limits)
		if desc, isIndex, err := v.Choose(raw, "linux/amd64"); err == nil && isIndex {
			if desc.Size <= 0 || desc.Size > limits.Document || desc.Digest.Validate() != nil {
				t.Errorf("chose %+v", desc)
			}
		}
		if m, err := v.Manifest(raw); err == nil {
			for _, l := range append(m.Layers, m.Config) {
				if l.Size <= 0 || l.Digest.Validate() != nil {
					t.Errorf("accepted %+v", l)
				}
			}
		}
		if c, err := v.Config(raw, 1, "linux/amd64"); err == nil && len(c.RootFS.DiffIDs) != 1 {
			t.Errorf("accepted %+v", c)
		}
	})
}
