package snapshotter

import (
	"errors"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	snlabels "github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
)

func TestDecide(t *testing.T) {
	const (
		app   = "registry.example/app:1"
		pause = "registry.k8s.io/pause:3.10"
	)
	tests := map[string]struct {
		target    bool
		reference string
		parent    Mode
		without   Mode
		want      Mode
		wantErr   error
	}{
		"first layer":                           {target: true, reference: app, want: ModeReference},
		"layer on a reference":                  {target: true, reference: app, parent: ModeReference, want: ModeReference},
		"layer on a passed-through base":        {target: true, reference: app, parent: ModeOverlay, want: ModeReference},
		"excluded image":                        {target: true, reference: pause, want: ModeOverlay},
		"excluded image, next layer":            {target: true, reference: pause, parent: ModeOverlay, want: ModeOverlay},
		"excluded image on a reference":         {target: true, reference: pause, parent: ModeReference, wantErr: errdefs.ErrFailedPrecondition},
		"unnamed layer":                         {target: true, want: ModeReference},
		"unnamed layer, passthrough":            {target: true, without: ModeOverlay, want: ModeOverlay},
		"unnamed layer on overlay, passthrough": {target: true, parent: ModeOverlay, without: ModeOverlay, want: ModeOverlay},
		"unnamed on a reference, passthrough":   {target: true, parent: ModeReference, without: ModeOverlay, want: ModeReference},
		"unnamed on overlay":                    {target: true, parent: ModeOverlay, want: ModeReference},
		"container on a reference":              {parent: ModeReference, want: ModeReference},
		"container on overlay":                  {parent: ModeOverlay, want: ModeOverlay},
		"scratch":                               {want: ModeOverlay},
		"container with an excluded label":      {reference: pause, parent: ModeReference, want: ModeReference},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if tc.without == "" {
				tc.without = ModeReference
			}
			rules, err := NewRules([]string{"*/pause:*"}, tc.without)
			if err != nil {
				t.Fatal(err)
			}
			labels := map[string]string{snlabels.TargetRefLabel: tc.reference}
			if tc.target {
				labels[snapshots.LabelSnapshotRef] = chainA.String()
			}
			got, err := rules.decide(labels, tc.parent)
			if got != tc.want || !errors.Is(err, tc.wantErr) {
				t.Fatalf("got %q, %v; want %q, %v", got, err, tc.want, tc.wantErr)
			}
		})
	}
}

func TestPatterns(t *testing.T) {
	tests := map[string]struct {
		pattern, reference string
		want               bool
	}{
		"star spans slashes":         {"*/pause:*", "docker.io/rancher/pause:3.6", true},
		"the whole must match":       {"*/pause:*", "docker.io/rancher/mirrored-pause:3.6", false},
		"nothing after the end":      {"a/b:1", "a/b:12", false},
		"nothing before the start":   {"b:1", "a/b:1", false},
		"a dot is a dot":             {"a.b/c:*", "axb/c:1", false},
		"brackets are themselves":    {"a/[bc]:1", "a/b:1", false},
		"question mark is one":       {"a/b:?", "a/b:1", true},
		"question mark is not none":  {"a/b:1?", "a/b:1", false},
		"a line end matches no star": {"a/*", "a/\n", false},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			rules, err := NewRules([]string{tc.pattern}, ModeReference)
			if err != nil {
				t.Fatal(err)
			}
			if _, got := rules.passes(tc.reference); got != tc.want {
				t.Fatalf("%q matches %q: %v", tc.pattern, tc.reference, got)
			}
		})
	}
	_, err := NewRules([]string{"", "ok", "a b"}, ModeReference)
	if !errors.Is(err, errdefs.ErrInvalidArgument) || strings.Count(err.Error(), "pattern") != 2 {
		t.Fatalf("faulty patterns gave %v", err)
	}
}

func TestMergeLabels(t *testing.T) {
	mode := map[string]string{LabelMode: string(ModeReference), "a": "1"}
	tests := map[string]struct {
		now, wanted map[string]string
		paths       []string
		want        map[string]string
		wantPaths   string
	}{
		"all labels":          {now: mode, wanted: map[string]string{"b": "2"}, want: map[string]string{"b": "2", LabelMode: "reference-only"}, wantPaths: "labels"},
		"mode is not taken":   {now: mode, wanted: map[string]string{LabelMode: "passthrough"}, want: map[string]string{LabelMode: "reference-only"}, wantPaths: "labels"},
		"mode by its path":    {now: mode, wanted: map[string]string{LabelMode: ""}, paths: []string{"labels." + LabelMode}, want: mode, wantPaths: "labels"},
		"one label":           {now: mode, wanted: map[string]string{"b": "2"}, paths: []string{"labels.b", "labels." + LabelMode}, want: map[string]string{"b": "2", LabelMode: "reference-only"}, wantPaths: "labels.b"},
		"ref of overlay goes": {now: map[string]string{"a": "1"}, wanted: map[string]string{snapshots.LabelSnapshotRef: "x"}, paths: []string{"labels." + snapshots.LabelSnapshotRef}, want: map[string]string{"a": "1"}, wantPaths: "labels"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got, paths := mergeLabels(snapshots.Info{Labels: tc.now}, snapshots.Info{Labels: tc.wanted}, tc.paths)
			if !equalLabels(got.Labels, tc.want) || strings.Join(paths, " ") != tc.wantPaths {
				t.Fatalf("got %v by %v, want %v by %s", got.Labels, paths, tc.want, tc.wantPaths)
			}
		})
	}
}

func equalLabels(a, b map[string]string) bool {
	return record{Labels: a}.equal(record{Labels: b})
}
