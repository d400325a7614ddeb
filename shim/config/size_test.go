package config

import (
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

const testMiB = 1 << 20

func TestPodSize(t *testing.T) {
	cases := map[string]struct {
		annotations map[string]string
		demand      Demand
		change      func(*Hypervisor)
		want        Pod
		wantErr     string
	}{
		"no limits":         {want: Pod{VCPUs: 1, MemoryMiB: 2048}},
		"limits":            {demand: Demand{MilliCPUs: 2500, MemoryBytes: 128 * testMiB}, want: Pod{VCPUs: 3, MemoryMiB: 2176}},
		"rounded up":        {demand: Demand{MilliCPUs: 1, MemoryBytes: 128*testMiB + 1}, want: Pod{VCPUs: 1, MemoryMiB: 2177}},
		"small overhead":    {demand: Demand{MemoryBytes: testMiB, OverheadBytes: 256 * testMiB}, want: Pod{VCPUs: 1, MemoryMiB: 2049}},
		"large overhead":    {demand: Demand{MemoryBytes: testMiB, OverheadBytes: 4096 * testMiB}, want: Pod{VCPUs: 1, MemoryMiB: 4097}},
		"overhead alone":    {demand: Demand{OverheadBytes: 4096 * testMiB}, want: Pod{VCPUs: 1, MemoryMiB: 4096}},
		"annotations first": {map[string]string{AnnotationVCPUs: "4", AnnotationMemory: "512"}, Demand{MilliCPUs: 2000, MemoryBytes: 100 * testMiB, OverheadBytes: 4096 * testMiB}, nil, Pod{VCPUs: 4, MemoryMiB: 612}, ""},
		"negative":          {demand: Demand{MilliCPUs: -1, MemoryBytes: -1, OverheadBytes: -1}, want: Pod{VCPUs: 1, MemoryMiB: 2048}},
		"at the maximum":    {demand: Demand{MilliCPUs: 32000, MemoryBytes: (65536 - 2048) * testMiB}, want: Pod{VCPUs: 32, MemoryMiB: 65536}},
		"too many cpus":     {demand: Demand{MilliCPUs: 32001}, wantErr: "max_vcpus"},
		"too much memory":   {demand: Demand{MemoryBytes: (65536 - 2047) * testMiB}, wantErr: "max_memory_mib"},
		"absurd":            {demand: Demand{MemoryBytes: math.MaxInt64}, wantErr: "max_memory_mib"},
		"absurd overhead":   {demand: Demand{OverheadBytes: math.MaxInt64}, wantErr: "max_memory_mib"},
		"switched off": {demand: Demand{MilliCPUs: 8000, MemoryBytes: testMiB, OverheadBytes: 4096 * testMiB},
			change: func(h *Hypervisor) { h.SizeFromLimits = false }, want: Pod{VCPUs: 1, MemoryMiB: 2048}},
		"annotation not allowed": {annotations: map[string]string{AnnotationMemory: "512"},
			change: func(h *Hypervisor) { h.EnableAnnotations = []string{nameVCPUs} }, wantErr: "enable_annotations"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			config := Default()
			if tc.change != nil {
				tc.change(&config.Hypervisor)
			}
			got, err := config.Pod(tc.annotations, tc.demand)
			if tc.wantErr != "" {
				if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), tc.wantErr) {
					t.Errorf("got %v, want an error that names %s", err, tc.wantErr)
				}
				return
			}
			if err != nil || got != tc.want {
				t.Errorf("got %+v, %v; want %+v", got, err, tc.want)
			}
		})
	}
}

func TestPodHolds(t *testing.T) {
	pod := Pod{VCPUs: 2, MemoryMiB: 512}
	for name, tc := range map[string]struct {
		demand  Demand
		wantErr error
	}{
		"nothing said":    {Demand{}, nil},
		"all of it":       {Demand{MilliCPUs: 2000, MemoryBytes: 512 * testMiB}, nil},
		"a cpu more":      {Demand{MilliCPUs: 2001}, errdefs.ErrFailedPrecondition},
		"a byte more":     {Demand{MemoryBytes: 512*testMiB + 1}, errdefs.ErrFailedPrecondition},
		"unlimited":       {Demand{MilliCPUs: -1, MemoryBytes: -1}, nil},
		"beyond measures": {Demand{MemoryBytes: math.MaxInt64}, errdefs.ErrFailedPrecondition},
	} {
		t.Run(name, func(t *testing.T) {
			if err := pod.Holds(tc.demand); !errors.Is(err, tc.wantErr) {
				t.Errorf("got %v, want %v", err, tc.wantErr)
			}
		})
	}
}
