package snapshotter

import (
	"errors"
	"maps"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	snlabels "github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

var (
	chainA = digest.FromString("chain a")
	chainB = digest.FromString("chain b")
)

func TestNameOf(t *testing.T) {
	manifest, layer := digest.FromString("manifest"), digest.FromString("layer")
	full := map[string]string{
		snapshots.LabelSnapshotRef:         chainA.String(),
		snlabels.TargetRefLabel:            "registry.example:5000/a/b:1",
		snlabels.TargetManifestDigestLabel: manifest.String(),
		snlabels.TargetLayerDigestLabel:    layer.String(),
		snlabels.TargetImageLayersLabel:    layer.String(),
	}
	tests := map[string]struct {
		change  map[string]string
		want    layerName
		wantErr error
	}{
		"last layer of its image": {
			want: layerName{Chain: chainA, Reference: "registry.example:5000/a/b:1", Manifest: manifest, Layer: layer, Top: true},
		},
		"layer with others above it": {
			change: map[string]string{snlabels.TargetImageLayersLabel: layer.String() + "," + manifest.String()},
			want:   layerName{Chain: chainA, Reference: "registry.example:5000/a/b:1", Manifest: manifest, Layer: layer},
		},
		"without a reference": {
			change: map[string]string{snlabels.TargetRefLabel: "", snlabels.TargetManifestDigestLabel: "", snlabels.TargetLayerDigestLabel: "", snlabels.TargetImageLayersLabel: ""},
			want:   layerName{Chain: chainA},
		},
		"chain is no digest":     {change: map[string]string{snapshots.LabelSnapshotRef: "../../etc"}, wantErr: errdefs.ErrInvalidArgument},
		"chain is missing":       {change: map[string]string{snapshots.LabelSnapshotRef: ""}, wantErr: errdefs.ErrInvalidArgument},
		"manifest is no digest":  {change: map[string]string{snlabels.TargetManifestDigestLabel: "sha256:1"}, wantErr: errdefs.ErrInvalidArgument},
		"layer is no digest":     {change: map[string]string{snlabels.TargetLayerDigestLabel: "x"}, wantErr: errdefs.ErrInvalidArgument},
		"reference is too long":  {change: map[string]string{snlabels.TargetRefLabel: strings.Repeat("a", maxReference+1)}, wantErr: errdefs.ErrInvalidArgument},
		"reference of any shape": {change: map[string]string{snlabels.TargetRefLabel: "a?b&c=d%#\" é"}, want: layerName{Chain: chainA, Reference: "a?b&c=d%#\" é", Manifest: manifest, Layer: layer, Top: true}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			labels := maps.Clone(full)
			maps.Copy(labels, tc.change)
			got, err := nameOf(labels)
			if !errors.Is(err, tc.wantErr) {
				t.Fatalf("error %v, want %v", err, tc.wantErr)
			}
			if tc.wantErr != nil {
				return
			}
			if got != tc.want {
				t.Fatalf("got %+v, want %+v", got, tc.want)
			}
			back, ours := parseName(got.String())
			if !ours || back != got {
				t.Fatalf("%s reads back as %+v, %v", got, back, ours)
			}
		})
	}
}

func TestParseNameRefusesWhatIsNotOurs(t *testing.T) {
	for name, text := range map[string]string{
		"empty":                    "",
		"containerd's own name":    "k8s.io/7/" + chainA.String(),
		"extraction key":           "k8s.io/7/extract-1-x " + chainA.String(),
		"question mark too many":   chainA.String() + "?",
		"unknown fact":             chainA.String() + "?colour=red",
		"fact without a value":     chainA.String() + "?ref=",
		"fact twice":               chainA.String() + "?ref=a&ref=b",
		"facts in another order":   chainA.String() + "?ref=a&layer=" + chainB.String(),
		"manifest is no digest":    chainA.String() + "?manifest=latest",
		"top is not one":           chainA.String() + "?ref=a&top=true",
		"bad escape":               chainA.String() + "?ref=%zz",
		"chain in capital letters": strings.ToUpper(chainA.String()),
		"too long":                 chainA.String() + "?ref=" + strings.Repeat("a", maxName),
	} {
		t.Run(name, func(t *testing.T) {
			if got, ours := parseName(text); ours {
				t.Fatalf("%q was read as %+v", text, got)
			}
		})
	}
}

func FuzzParseName(f *testing.F) {
	f.Add(chainA.String())
	f.Add(layerName{Chain: chainA, Reference: "a/b:c", Manifest: chainB, Top: true, Twin: "k8s.io/3/x y"}.String())
	f.Fuzz(func(t *testing.T, text string) {
		n, ours := parseName(text)
		if !ours {
			return
		}
		if n.String() != text {
			t.Fatalf("%q reads as %q", text, n)
		}
		if n.Chain.Validate() != nil || len(n.Reference) > maxReference {
			t.Fatalf("%q was accepted", text)
		}
	})
}
