package image_test

import (
	"errors"
	"testing"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-project/coffer/guestpull/image"
	"github.com/coffer-project/coffer/guestpull/mediatype"
	rt "github.com/coffer-project/coffer/integration/registrytest"
	"github.com/coffer-project/coffer/integration/require"
)

// TestPlatforms chooses from indexes as tools write them.
func TestPlatforms(t *testing.T) {
	require.Root(t)
	cases := map[string]struct {
		// offered are platforms in no order, want the one that is chosen; edit changes the index.
		offered  []string
		platform string
		edit     func(*ocispec.Index)
		want     string
		wantErr  error
	}{
		"exact":               {offered: []string{"linux/arm64", "linux/amd64"}, platform: "linux/amd64", want: "linux/amd64"},
		"other system":        {offered: []string{"windows/amd64", "linux/amd64"}, platform: "linux/amd64", want: "linux/amd64"},
		"other system alone":  {offered: []string{"windows/amd64"}, platform: "linux/amd64", wantErr: errdefs.ErrNotFound},
		"best variant":        {offered: []string{"linux/amd64", "linux/amd64/v2", "linux/amd64/v3", "linux/amd64/v4"}, platform: "linux/amd64/v3", want: "linux/amd64/v3"},
		"older variant":       {offered: []string{"linux/amd64", "linux/amd64/v2"}, platform: "linux/amd64/v3", want: "linux/amd64/v2"},
		"base is v1":          {offered: []string{"linux/amd64/v3", "linux/amd64/v1"}, platform: "linux/amd64", want: "linux/amd64/v1"},
		"too new a variant":   {offered: []string{"linux/amd64/v3"}, platform: "linux/amd64", wantErr: errdefs.ErrNotFound},
		"arm64 is v8":         {offered: []string{"linux/arm/v7", "linux/arm64/v8"}, platform: "linux/arm64", want: "linux/arm64/v8"},
		"older arm":           {offered: []string{"linux/arm/v5", "linux/arm/v6"}, platform: "linux/arm/v7", want: "linux/arm/v6"},
		"attestations beside": {offered: []string{"unknown/unknown", "linux/amd64"}, platform: "linux/amd64", want: "linux/amd64"},
		"Docker's list": {
			offered: []string{"linux/arm64", "linux/amd64"}, platform: "linux/amd64", want: "linux/amd64",
			edit: func(i *ocispec.Index) { i.MediaType = mediatype.DockerManifestList },
		},
		"version of the system": {
			offered: []string{"linux/amd64"}, platform: "linux/amd64", want: "linux/amd64",
			edit: func(i *ocispec.Index) { i.Manifests[0].Platform.OSVersion = "6.12" },
		},
		"without a media type": {
			offered: []string{"linux/amd64"}, platform: "linux/amd64", want: "linux/amd64",
			edit: func(i *ocispec.Index) { i.MediaType = "" },
		},
		"platform missing": {
			offered: []string{"linux/amd64"}, platform: "linux/amd64", wantErr: errdefs.ErrNotFound,
			edit: func(i *ocispec.Index) { i.Manifests[0].Platform = nil },
		},
		"manifest is for another one": {
			offered: []string{"linux/arm64"}, platform: "linux/amd64", wantErr: errdefs.ErrInvalidArgument,
			edit: func(i *ocispec.Index) { i.Manifests[0].Platform.Architecture = "amd64" },
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			images := map[string]*rt.Image{}
			for _, platform := range tc.offered {
				images[platform] = imageFor(platform)
			}
			var edits []func(*ocispec.Index)
			if tc.edit != nil {
				edits = append(edits, tc.edit)
			}
			r := rt.Start(t)
			ref := r.Put("index", "1", rt.NewIndex(images, edits...))
			p, dir := newPuller(t, r, nil)
			got, err := p.Pull(t.Context(), image.Request{ContainerID: "c", Reference: ref, Platform: tc.platform})
			if tc.wantErr != nil {
				if !errors.Is(err, tc.wantErr) {
					t.Errorf("got %v, want %v", err, tc.wantErr)
				}
				wantEmpty(t, dir)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if chosen := readFile(t, got.Layers, "platform"); chosen != tc.want {
				t.Errorf("chose %s, want %s", chosen, tc.want)
			}
		})
	}
}

// imageFor has a file that says which platform it is for.
func imageFor(platform string) *rt.Image {
	layer := rt.NewLayer(rt.Gzip, rt.Files(map[string]string{"platform": platform})...)
	return rt.NewImage([]rt.Layer{layer}, func(c *ocispec.Image) { c.Platform = rt.Platform(platform) }, nil)
}
