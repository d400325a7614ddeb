package config

import (
	"errors"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestPodScratch(t *testing.T) {
	for name, tc := range map[string]struct {
		annotation string // none when empty
		forbidden  bool
		node       uint32
		want       uint32
		wantErr    string
	}{
		"none":           {},
		"of the node":    {node: 1024, want: 1024},
		"of the pod":     {annotation: "2048", node: 1024, want: 2048},
		"pod without":    {annotation: "0", node: 1024, want: 0},
		"the maximum":    {annotation: "102400", want: 102400},
		"beyond":         {annotation: "102401", wantErr: "node's limit of 102400"},
		"tiny":           {annotation: "63", wantErr: "not between 64"},
		"no number":      {annotation: "10Gi", wantErr: "no whole number"},
		"not allowed":    {annotation: "2048", forbidden: true, wantErr: "hypervisor.enable_annotations"},
		"none forbidden": {forbidden: true, node: 64, want: 64},
	} {
		t.Run(name, func(t *testing.T) {
			config := Default()
			config.Scratch.DefaultMiB = tc.node
			if !tc.forbidden {
				config.Hypervisor.EnableAnnotations = append(config.Hypervisor.EnableAnnotations, nameScratch)
			}
			if err := config.Validate(); err != nil {
				t.Fatal(err)
			}
			annotations := map[string]string{}
			if tc.annotation != "" {
				annotations[AnnotationScratch] = tc.annotation
			}
			got, err := config.Pod(annotations, Demand{})
			if tc.wantErr != "" {
				if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), tc.wantErr) {
					t.Errorf("got %v, want an error that says %q", err, tc.wantErr)
				}
				return
			}
			if err != nil || got.ScratchMiB != tc.want {
				t.Errorf("got %+v, %v; want %d", got, err, tc.want)
			}
		})
	}
}
