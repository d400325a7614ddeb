package images

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

func TestDocuments(t *testing.T) {
	d := digest.FromString("x")
	config := fmt.Sprintf(`"config":{"digest":%q}`, d)
	layer := fmt.Sprintf(`{"mediaType":"l","digest":%q}`, d)
	tests := map[string]struct {
		manifest, config string
		wantErr          error
		children         int
	}{
		"manifest":                {manifest: `{` + config + `,"layers":[` + layer + `]}`, config: fmt.Sprintf(`{"rootfs":{"diff_ids":[%q]}}`, d)},
		"artifact":                {manifest: `{` + config + `,"layers":[` + layer + `]}`, config: `{}`},
		"index":                   {manifest: `{"manifests":[{"digest":"x"}]}`, children: 1},
		"both":                    {manifest: `{` + config + `,"manifests":[{"digest":"x"}]}`, wantErr: errdefs.ErrInvalidArgument},
		"neither":                 {manifest: `{}`, wantErr: errdefs.ErrInvalidArgument},
		"no JSON":                 {manifest: `manifest`, wantErr: errdefs.ErrInvalidArgument},
		"configuration no JSON":   {manifest: `{` + config + `}`, config: `[]`, wantErr: errdefs.ErrInvalidArgument},
		"another number of diffs": {manifest: `{` + config + `}`, config: fmt.Sprintf(`{"rootfs":{"diff_ids":[%q]}}`, d), wantErr: errdefs.ErrInvalidArgument},
		"strange diff":            {manifest: `{` + config + `,"layers":[` + layer + `]}`, config: `{"rootfs":{"diff_ids":["../../etc"]}}`, wantErr: errdefs.ErrInvalidArgument},
		"too many layers": {
			manifest: `{` + config + `,"layers":[` + strings.Repeat(layer+",", maxLayers) + layer + `]}`, config: `{}`, wantErr: errdefs.ErrInvalidArgument,
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			manifest, children, err := decodeManifest(d, []byte(tc.manifest))
			if err == nil && len(children) == 0 {
				_, err = parseImage(d, manifest, []byte(tc.config))
			}
			if !errors.Is(err, tc.wantErr) || len(children) != tc.children {
				t.Errorf("%d children, %v; want %d, %v", len(children), err, tc.children, tc.wantErr)
			}
		})
	}
}

// FuzzDocuments: whatever a registry sends, there is an image with one chain a layer, or an error.
func FuzzDocuments(f *testing.F) {
	d := digest.FromString("x")
	f.Add([]byte(fmt.Sprintf(`{"config":{"digest":%q},"layers":[{"mediaType":"a+encrypted"}]}`, d)), []byte(fmt.Sprintf(`{"config":{"User":"a:b"},"rootfs":{"diff_ids":[%q]}}`, d)))
	f.Add([]byte(`{"manifests":[{"platform":{"os":"linux"}}]}`), []byte(`{}`))
	f.Fuzz(func(t *testing.T, rawManifest, rawConfig []byte) {
		manifest, children, err := decodeManifest(d, rawManifest)
		if err != nil || len(children) > 0 {
			return
		}
		image, err := parseImage(d, manifest, rawConfig)
		if err != nil {
			return
		}
		if n := len(image.Chains); n != 0 && n != len(image.Layers) {
			t.Errorf("%d chains of %d layers", n, len(image.Layers))
		}
		if _, err := json.Marshal(image); err != nil {
			t.Error(err)
		}
		image.Top()
		image.Encrypted()
	})
}

// TestCache: more images than are remembered push out as many as are too many.
func TestCache(t *testing.T) {
	c := &Client{cache: map[digest.Digest]*Image{}}
	var latest digest.Digest
	for i := range maxCached + maxCached/4 {
		latest = digest.FromString(fmt.Sprint(i))
		c.remember(latest, &Image{Manifest: latest})
	}
	if len(c.cache) != maxCached || c.cache[latest] == nil {
		t.Errorf("%d images are remembered, the latest: %v", len(c.cache), c.cache[latest])
	}
}
