package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/coffer-project/coffer/integration/bench/chart"
	"github.com/coffer-project/coffer/integration/bench/stats"
	"github.com/coffer-project/coffer/integration/program"
)

// sample is one pod's phases by name, in milliseconds.
type sample map[string]float64

// figures sum up one phase over all pods of a kind, in milliseconds.
type figures struct {
	Median float64 `json:"median_ms"`
	Min    float64 `json:"min_ms"`
	Max    float64 `json:"max_ms"`
}

// report is what boot.json holds.
type report struct {
	Processors int `json:"processors"`
	Pods       int `json:"pods"`
	// Phases are by kind and name. host network, vm_boot, agent_ready and setup follow each other; run_pod_sandbox has
	// besides them what containerd does; the guest's are parts of agent_ready, or run after it.
	Phases map[string]map[string]figures `json:"phases"`

	handlers []string
	samples  map[string][]sample
}

func newReport(handlers []string) *report {
	return &report{Processors: runtime.NumCPU(), handlers: handlers, samples: map[string][]sample{}, Phases: map[string]map[string]figures{}}
}

// add takes a sample in and brings the figures up to date.
func (r *report) add(handler string, s sample) {
	r.samples[handler] = append(r.samples[handler], s)
	r.Pods = len(r.samples[handler])
	values := map[string][]float64{}
	for _, s := range r.samples[handler] {
		for name, value := range s {
			values[name] = append(values[name], value)
		}
	}
	r.Phases[handler] = map[string]figures{}
	for name, list := range values {
		r.Phases[handler][name] = figures{Median: stats.Median(list), Min: slices.Min(list), Max: slices.Max(list)}
	}
}

// order sorts phases: the whole first, then the host's, then the guest's, the longest first.
func (r *report) order() []string {
	names := slices.Collect(maps.Keys(r.Phases[baseline]))
	rank := func(name string) int {
		return slices.Index([]string{"run_pod_sandbox", "host", "guest"}, strings.Fields(name)[0])
	}
	slices.SortFunc(names, func(a, b string) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), -cmp.Compare(r.Phases[baseline][a].Median, r.Phases[baseline][b].Median), cmp.Compare(a, b))
	})
	return names
}

func (r *report) print(w io.Writer) {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	defer table.Flush()
	fmt.Fprintf(table, "kind\tphase\tmedian ms\tmin\tmax\tratio\t\n")
	for _, handler := range r.handlers {
		for _, name := range r.order() {
			f, base := r.Phases[handler][name], r.Phases[baseline][name]
			ratio := ""
			if base.Median > 0 {
				ratio = fmt.Sprintf("%.2f", f.Median/base.Median)
			}
			fmt.Fprintf(table, "%s\t%s\t%.0f\t%.0f\t%.0f\t%s\t\n", handler, name, f.Median, f.Min, f.Max, ratio)
		}
	}
}

func (r *report) write(dir string) error {
	if _, err := program.WriteJSON(dir, "boot.json", r); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "boot.svg"), r.chart(), 0o644)
}

// steps are the phases that follow each other on the host.
var steps = []string{"host network", "host vm_boot", "host agent_ready", "host setup"}

// chart draws the whole start and its steps, each kind beside the others.
func (r *report) chart() []byte {
	c := chart.Bars{
		Title: "Milliseconds to start a pod, and its steps (less is better)",
		Note:  fmt.Sprintf("%d processors, %d pods of each kind; medians", r.Processors, r.Pods),
		Unit:  "ms",
	}
	for _, phase := range append([]string{"run_pod_sandbox"}, steps...) {
		g := chart.Group{Name: phase}
		for _, handler := range r.handlers {
			g.Bars = append(g.Bars, chart.Bar{Name: handler, Value: r.Phases[handler][phase].Median})
		}
		c.Groups = append(c.Groups, g)
	}
	return c.SVG()
}
