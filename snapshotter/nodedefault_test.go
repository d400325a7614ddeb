package snapshotter

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	snlabels "github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-project/coffer/snapshotter/images"
)

// fakeCatalog is a containerd that knows some images. It records what it is told to forget.
type fakeCatalog struct {
	images []*images.Image
	names  map[digest.Digest][]string
	// away is the content that it has not.
	away      map[digest.Digest]bool
	err       error
	forgotten []digest.Digest
}

func (f *fakeCatalog) Close() error { return nil }

func (f *fakeCatalog) Manifest(_ context.Context, d digest.Digest) (*images.Image, error) {
	for _, i := range f.images {
		if i.Manifest == d {
			return i, f.err
		}
	}
	return nil, errors.Join(f.err, errdefs.ErrNotFound)
}

func (f *fakeCatalog) Containing(_ context.Context, chain digest.Digest) (found []*images.Image, err error) {
	for _, i := range f.images {
		if slices.Contains(i.Chains, chain) {
			found = append(found, i)
		}
	}
	return found, f.err
}

func (f *fakeCatalog) Names(_ context.Context, manifest digest.Digest) ([]string, error) {
	return f.names[manifest], f.err
}

func (f *fakeCatalog) Has(_ context.Context, d digest.Digest) (bool, error) { return !f.away[d], f.err }

func (f *fakeCatalog) Forget(_ context.Context, chain digest.Digest) {
	f.forgotten = append(f.forgotten, chain)
}

// add makes an image of chainA and, above it, chains; names are what it is called.
func (f *fakeCatalog) add(names []string, edit func(*images.Image), chains ...digest.Digest) digest.Digest {
	i := &images.Image{Manifest: digest.FromString("manifest " + strings.Join(names, " ")), Chains: append([]digest.Digest{chainA}, chains...)}
	for _, chain := range i.Chains {
		i.Layers = append(i.Layers, images.Layer{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromString(string(i.Manifest + chain))})
	}
	if edit != nil {
		edit(i)
	}
	f.images = append(f.images, i)
	f.names[i.Manifest] = names
	return i.Manifest
}

func sealTop(i *images.Image) { i.Layers[len(i.Layers)-1].MediaType += "+encrypted" }
func annotate(value string) func(*images.Image) {
	return func(i *images.Image) { i.Annotations = map[string]string{LabelGuestOnly: value} }
}
func label(value string) func(*images.Image) {
	return func(i *images.Image) { i.Config.Labels = map[string]string{LabelGuestOnly: value} }
}

func TestNodeDefaultDecides(t *testing.T) {
	const (
		host, guest = "registry.example/host:1", "registry.example/guest:1"
	)
	tests := map[string]struct {
		// setup returns the manifest digest that containerd's labels name; empty where it gives no labels.
		setup     func(f *fakeCatalog) digest.Digest
		reference string
		// below is the mode of the layer below, chainA; container means that no layer but a container is made.
		below      Mode
		container  bool
		want       Mode
		wantErr    error
		wantText   []string
		wantForget bool
	}{
		"plain image":                {setup: func(f *fakeCatalog) digest.Digest { return f.add([]string{host}, nil, chainB) }, want: ModeOverlay},
		"encrypted image":            {setup: func(f *fakeCatalog) digest.Digest { return f.add([]string{guest}, sealTop, chainB) }, want: ModeReference},
		"annotated image":            {setup: func(f *fakeCatalog) digest.Digest { return f.add([]string{guest}, annotate("true"), chainB) }, want: ModeReference},
		"labelled image":             {setup: func(f *fakeCatalog) digest.Digest { return f.add([]string{guest}, label("yes please"), chainB) }, want: ModeReference},
		"labelled false":             {setup: func(f *fakeCatalog) digest.Digest { return f.add([]string{guest}, label("false"), chainB) }, want: ModeOverlay},
		"named in the configuration": {setup: func(f *fakeCatalog) digest.Digest { return f.add(nil, nil, chainB) }, reference: "secret.example/x:1", want: ModeReference},
		"containerd is away": {
			setup: func(f *fakeCatalog) digest.Digest {
				f.err = errdefs.ErrUnavailable
				return f.add([]string{host}, nil, chainB)
			},
			wantErr: errdefs.ErrUnavailable, wantText: []string{host, "is for guests"}, reference: host,
		},
		"encrypted on an unpacked base": {
			setup: func(f *fakeCatalog) digest.Digest { return f.add([]string{guest}, sealTop, chainB) }, below: ModeOverlay, want: ModeReference,
		},
		"plain on a reference": {
			setup: func(f *fakeCatalog) digest.Digest { return f.add([]string{host}, nil, chainB) }, reference: host, below: ModeReference,
			wantErr: errdefs.ErrUnavailable, wantText: []string{host, "pull the image again"}, wantForget: true,
		},
		"unpacked again": {
			setup: func(f *fakeCatalog) digest.Digest { f.add([]string{host}, nil, chainB); return "" }, want: ModeOverlay,
		},
		"unpacked again, encrypted": {
			setup: func(f *fakeCatalog) digest.Digest { f.add([]string{guest}, sealTop, chainB); return "" }, want: ModeReference,
		},
		"unpacked again, named in the configuration": {
			setup: func(f *fakeCatalog) digest.Digest { f.add([]string{"secret.example/x:1"}, nil, chainB); return "" }, want: ModeReference,
		},
		"unpacked again without content": {
			setup: func(f *fakeCatalog) digest.Digest {
				f.add([]string{"sha256:1", host, host + "@sha256:2"}, nil, chainB)
				f.away = map[digest.Digest]bool{f.images[0].Layers[1].Digest: true}
				return ""
			},
			wantErr: errdefs.ErrFailedPrecondition, wantText: []string{host + " was pulled for guests", "crictl pull " + host + ","},
		},
		"pulled without labels": {
			setup: func(f *fakeCatalog) digest.Digest {
				f.add(nil, nil, chainB)
				f.away = map[digest.Digest]bool{f.images[0].Layers[1].Digest: true}
				return ""
			},
			want: ModeOverlay,
		},
		"twins, one of them here": {
			setup: func(f *fakeCatalog) digest.Digest {
				f.add([]string{guest}, sealTop, chainB)
				f.add([]string{host}, nil, chainB)
				return ""
			},
			want: ModeOverlay,
		},
		"twins without content": {
			setup: func(f *fakeCatalog) digest.Digest {
				f.add([]string{guest}, sealTop, chainB)
				f.add([]string{host}, nil, chainB)
				f.away = map[digest.Digest]bool{f.images[1].Layers[1].Digest: true}
				return ""
			},
			want: ModeReference,
		},
		"an image that nobody knows": {
			setup: func(*fakeCatalog) digest.Digest { return "" }, wantErr: errdefs.ErrFailedPrecondition, wantText: []string{"pull the image again"},
		},
		"container on an unpacked image": {
			setup: func(f *fakeCatalog) digest.Digest { return f.add([]string{host}, nil) }, container: true, below: ModeOverlay, want: ModeOverlay,
		},
		"scratch": {setup: func(*fakeCatalog) digest.Digest { return "" }, container: true, want: ModeOverlay},
		"container on an image for guests": {
			setup: func(f *fakeCatalog) digest.Digest { return f.add([]string{guest}, sealTop) }, container: true, below: ModeReference,
			wantErr: errdefs.ErrFailedPrecondition, wantText: []string{guest, "is encrypted", "runtimeClassName"},
		},
		"container on a twin for guests": {
			setup: func(f *fakeCatalog) digest.Digest {
				f.add([]string{guest}, sealTop)
				return f.add([]string{host}, nil)
			},
			container: true, below: ModeReference, wantErr: errdefs.ErrFailedPrecondition, wantText: []string{"crictl pull " + host}, wantForget: true,
		},
		"container while containerd is away": {
			setup:     func(f *fakeCatalog) digest.Digest { f.err = errdefs.ErrUnavailable; return "" },
			container: true, below: ModeReference, wantErr: errdefs.ErrFailedPrecondition, wantText: []string{guest, "is for guests only"},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			f := &fakeCatalog{names: map[digest.Digest][]string{}}
			n, err := NewNodeDefault(f, f, []string{"secret.example/*"})
			if err != nil {
				t.Fatal(err)
			}
			labels, parent := map[string]string{}, ""
			if manifest := tc.setup(f); manifest != "" {
				labels[snlabels.TargetManifestDigestLabel], labels[snlabels.TargetRefLabel] = manifest.String(), tc.reference
			}
			if !tc.container {
				labels[snapshots.LabelSnapshotRef] = chainB.String()
			}
			if tc.below != "" {
				parent = layerName{Chain: chainA, Reference: guest}.String()
			}
			got, err := n.decide(t.Context(), labels, parent, tc.below)
			if got != tc.want || !errors.Is(err, tc.wantErr) {
				t.Fatalf("got %q, %v; want %q, %v", got, err, tc.want, tc.wantErr)
			}
			for _, part := range tc.wantText {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q is not in the error: %v", part, err)
				}
			}
			if want := tc.wantForget; want != slices.Contains(f.forgotten, chainA) || !want && len(f.forgotten) > 0 {
				t.Errorf("containerd is told to forget %v, want %v", f.forgotten, want)
			}
		})
	}
}

// nameless is a containerd that stops to answer when it is asked for names.
type nameless struct{ *fakeCatalog }

func (nameless) Names(context.Context, digest.Digest) ([]string, error) {
	return nil, errdefs.ErrUnavailable
}

// TestRefuseWithoutNames: what containerd has not said is neither made up nor a reason to forget a layer.
func TestRefuseWithoutNames(t *testing.T) {
	catalog := &fakeCatalog{names: map[digest.Digest][]string{}}
	catalog.add([]string{"registry.example/plain:1"}, nil)
	n, err := NewNodeDefault(nameless{catalog}, catalog, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = n.refuse(t.Context(), layerName{Chain: chainA, Reference: app}.String())
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), app) || strings.Contains(err.Error(), "()") || len(catalog.forgotten) > 0 {
		t.Errorf("%v; forgotten %v", err, catalog.forgotten)
	}
}
