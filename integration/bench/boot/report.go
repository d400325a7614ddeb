package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
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
		slices.Sort(list)
		r.Phases[handler][name] = figures{Median: median(list), Min: list[0], Max: list[len(list)-1]}
	}
}

// median is that of a sorted list.
func median(list []float64) float64 {
	middle := len(list) / 2
	if len(list)%2 == 0 {
		return (list[middle-1] + list[middle]) / 2
	}
	return list[middle]
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
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	raw, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "boot.json"), append(raw, '\n'), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "boot.svg"), []byte(r.chart()), 0o644)
}

// Sizes of the chart, in pixels.
const (
	chartWidth, labelWidth, barHeight, chartMargin = 900, 220, 22, 30
)

// steps are the phases that follow each other on the host, with their colours.
var steps = []struct{ name, colour string }{
	{"host network", "#8da0cb"}, {"host vm_boot", "#fc8d62"}, {"host agent_ready", "#66c2a5"}, {"host setup", "#e78ac3"},
}

// chart draws a bar for each kind: the medians of the host's phases, and in grey what containerd adds.
func (r *report) chart() string {
	longest := 1.0
	for _, handler := range r.handlers {
		longest = max(longest, r.Phases[handler]["run_pod_sandbox"].Median)
	}
	scale := (chartWidth - labelWidth - 80) / longest
	var b strings.Builder
	height := 2*chartMargin + len(r.handlers)*2*barHeight
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="13">`+"\n", chartWidth, height)
	x := float64(labelWidth)
	for _, step := range steps {
		fmt.Fprintf(&b, `<text x="%.0f" y="18" fill="%s">%s</text>`+"\n", x, step.colour, strings.TrimPrefix(step.name, "host "))
		x += 110
	}
	for i, handler := range r.handlers {
		y, x := chartMargin+i*2*barHeight, float64(labelWidth)
		whole := r.Phases[handler]["run_pod_sandbox"].Median
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", labelWidth-10, y+16, handler)
		fmt.Fprintf(&b, `<rect x="%.1f" y="%d" width="%.1f" height="%d" fill="#cccccc"/>`+"\n", x, y, whole*scale, barHeight)
		for _, step := range steps {
			width := r.Phases[handler][step.name].Median * scale
			fmt.Fprintf(&b, `<rect x="%.1f" y="%d" width="%.1f" height="%d" fill="%s"/>`+"\n", x, y, width, barHeight, step.colour)
			x += width
		}
		fmt.Fprintf(&b, `<text x="%.1f" y="%d">%.2f s</text>`+"\n", labelWidth+whole*scale+6, y+16, whole/1000)
	}
	b.WriteString("</svg>\n")
	return b.String()
}
