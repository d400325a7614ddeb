package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"text/tabwriter"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/integration/bench/chart"
	"github.com/coffer-project/coffer/integration/bench/stats"
	"github.com/coffer-project/coffer/integration/program"
)

// usage is what one pull took. CPU is user and system time of all programs that took part.
type usage struct {
	CPU    float64            `json:"cpu_s"`
	Wall   float64            `json:"wall_s"`
	Phases map[string]float64 `json:"phases_s,omitempty"` // Coffer's own account: time at work, by stage

	memory, target int64 // peaks, in bytes
}

// run is one pull in pull.json.
type run struct {
	Tool string `json:"tool"`
	Run  int    `json:"run"`
	usage
	RSS    float64 `json:"rss_mib"`
	Target float64 `json:"peak_target_ratio"`
}

// summary has the medians of a tool's runs.
type summary struct {
	CPU  float64 `json:"cpu_s"`
	Wall float64 `json:"wall_s"`
	// RSS is the peak of all processes together; a page that several have counts once.
	RSS float64 `json:"rss_mib"`
	// Target is the peak use of the target by the bytes that the unpacked files need there.
	Target float64 `json:"peak_target_ratio"`
}

// ratios compare medians; those of peers are medians of the ratios of neighbouring runs. Against the bound less is
// better, 1 is the limit; against peers more is better, 2 is half their time.
type ratios struct {
	CPUBound      float64  `json:"cpu_vs_bound"`
	CPULibrary    float64  `json:"cpu_vs_library_bound"`
	CPUReceive    float64  `json:"cpu_vs_bound_with_receive"`
	WallBound     float64  `json:"wall_vs_bound"`
	CPUContainerd *float64 `json:"cpu_vs_containerd,omitempty"`
	CPUSkopeo     *float64 `json:"cpu_vs_skopeo,omitempty"`
	CPUBuildah    *float64 `json:"cpu_vs_buildah,omitempty"`
}

// result is one image in pull.json.
type result struct {
	Name    string             `json:"name"`
	Encoder string             `json:"encoder"`
	Packed  int64              `json:"packed_bytes"`
	Tar     int64              `json:"tar_bytes"`
	Files   int64              `json:"files"`
	Runs    []run              `json:"runs"`
	Bound   bound              `json:"bound"`
	Coffer  summary            `json:"coffer"`
	Peers   map[string]summary `json:"peers"`
	Failed  map[string]string  `json:"failed,omitempty"` // tools that cannot pull the image, and what they say
	Ratios  ratios             `json:"ratios"`
}

// report is pull.json.
type report struct {
	Machine machine `json:"machine"`
	// Quick marks a run on tiny images, whose times mean nothing.
	Quick bool `json:"quick,omitempty"`
	// Tools say which versions were measured, Notes which were not and why.
	Tools map[string]string `json:"tools"`
	Notes []string          `json:"notes,omitempty"`
	// Limits are megabytes (10^6) per second of one core unless the name says otherwise; inflate_IMAGE is per unpacked byte.
	Limits map[string]float64 `json:"limits"`
	Images []*result          `json:"images"`
	// Scaling has Coffer's cost by number of layers, files and cores.
	Scaling []series `json:"scaling,omitempty"`
}

// machine is where it was measured.
type machine struct {
	Processor  string  `json:"processor"`
	Processors int     `json:"processors"`
	Kernel     string  `json:"kernel"`
	Go         string  `json:"go"`
	Load       float64 `json:"load_at_start"`
}

func newReport(quick bool) *report {
	m := machine{Processors: runtime.NumCPU(), Go: runtime.Version()}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	if raw, err := os.ReadFile("/proc/loadavg"); err == nil {
		_, _ = fmt.Sscan(string(raw), &m.Load) // stays 0
	}
	if f, err := os.Open("/proc/cpuinfo"); err == nil {
		defer f.Close()
		for lines := bufio.NewScanner(f); m.Processor == "" && lines.Scan(); {
			if name, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(name) == "model name" {
				m.Processor = strings.TrimSpace(value)
			}
		}
	}
	return &report{Machine: m, Quick: quick}
}

// image adds an image to the report.
func (r *report) image(img *image, b bound) *result {
	res := &result{Name: img.Name, Encoder: img.Encoder, Bound: b, Peers: map[string]summary{}, Failed: map[string]string{}}
	for _, l := range img.Layers {
		res.Packed += l.Packed
		res.Tar += l.Tar
		res.Files += l.Files
	}
	r.Images = append(r.Images, res)
	return res
}

func (res *result) add(tool string, number int, u usage, img *image) {
	var pages int64
	for _, l := range img.Layers {
		pages += l.Pages
	}
	res.Runs = append(res.Runs, run{
		Tool: tool, Run: number, usage: u, RSS: float64(u.memory) / (1 << 20), Target: float64(u.target) / float64(pages),
	})
}

// sum fills in medians and ratios from the runs.
func (res *result) sum() {
	byTool := map[string][]run{}
	for _, r := range res.Runs {
		byTool[r.Tool] = append(byTool[r.Tool], r)
	}
	for name, runs := range byTool {
		of := func(value func(run) float64) float64 {
			var list []float64
			for _, r := range runs {
				list = append(list, value(r))
			}
			return stats.Median(list)
		}
		s := summary{
			CPU:  of(func(r run) float64 { return r.CPU }),
			Wall: of(func(r run) float64 { return r.Wall }),
			RSS:  of(func(r run) float64 { return r.RSS }), Target: of(func(r run) float64 { return r.Target }),
		}
		if name == nameCoffer {
			res.Coffer = s
		} else {
			res.Peers[name] = s
		}
	}
	res.Ratios = ratios{
		CPUBound: res.Coffer.CPU / res.Bound.CPU, CPULibrary: res.Coffer.CPU / res.Bound.Library, CPUReceive: res.Coffer.CPU / res.Bound.WithReceive, WallBound: res.Coffer.Wall / res.Bound.Wall,
		CPUContainerd: pairwise(byTool[nameContainerd], byTool[nameCoffer]),
		CPUSkopeo:     pairwise(byTool[nameSkopeo], byTool[nameCoffer]),
		CPUBuildah:    pairwise(byTool[nameBuildah], byTool[nameCoffer]),
	}
}

// pairwise is the median of the ratios of CPU time between runs of the same number; nil without such runs.
func pairwise(peer, own []run) *float64 {
	var list []float64
	for _, p := range peer {
		for _, o := range own {
			if p.Run == o.Run && o.CPU > 0 {
				list = append(list, p.CPU/o.CPU)
			}
		}
	}
	if len(list) == 0 {
		return nil
	}
	m := stats.Median(list)
	return &m
}

// write writes pull.json, pull.svg and, with a series, pull-scaling.svg, and returns the path of the first.
func (r *report) write(dir string) (string, error) {
	path, err := program.WriteJSON(dir, "pull.json", r)
	if err != nil {
		return "", err
	}
	if len(r.Scaling) > 0 {
		if err := os.WriteFile(filepath.Join(dir, "pull-scaling.svg"), r.scalingChart(), 0o644); err != nil {
			return "", err
		}
	}
	return path, os.WriteFile(filepath.Join(dir, "pull.svg"), r.chart(), 0o644)
}

// chart draws CPU time by image and tool, with the bound first.
func (r *report) chart() []byte {
	c := chart.Bars{
		Title: "CPU seconds to pull, verify, decrypt and unpack an encrypted image (less is better)",
		Note:  fmt.Sprintf("%s, %d processors, %s; client, daemons and decoders; median", r.Machine.Processor, r.Machine.Processors, r.Machine.Go),
		Unit:  "s",
	}
	for _, img := range r.Images {
		g := chart.Group{Name: img.Name, Bars: []chart.Bar{{Name: "bound", Value: img.Bound.CPU}, {Name: nameCoffer, Value: img.Coffer.CPU}}}
		for _, name := range peerOrder {
			if s, ok := img.Peers[name]; ok {
				g.Bars = append(g.Bars, chart.Bar{Name: name, Value: s.CPU})
			}
		}
		c.Groups = append(c.Groups, g)
	}
	return c.SVG()
}

// print shows the medians.
func (r *report) print(out io.Writer) {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "IMAGE\tTOOL\tCPU s\tWALL s\tRSS MiB\tTARGET\tCPU/BOUND\tWALL/BOUND\tCPU/COFFER\t")
	for _, img := range r.Images {
		fmt.Fprintf(w, "%s\tbound\t%.2f\t%.2f\t\t1.00\t1.00\t1.00\t%.2f\t\n", img.Name, img.Bound.CPU, img.Bound.Wall, img.Bound.CPU/img.Coffer.CPU)
		line := func(name string, s summary, ratio float64) {
			fmt.Fprintf(w, "%s\t%s\t%.2f\t%.2f\t%.0f\t%.2f\t%.2f\t%.2f\t%.2f\t\n", img.Name, name, s.CPU, s.Wall, s.RSS, s.Target,
				s.CPU/img.Bound.CPU, s.Wall/img.Bound.Wall, ratio)
		}
		line(nameCoffer, img.Coffer, 1)
		for i, ratio := range []*float64{img.Ratios.CPUContainerd, img.Ratios.CPUSkopeo, img.Ratios.CPUBuildah} {
			if ratio != nil {
				line(peerOrder[i], img.Peers[peerOrder[i]], *ratio)
			}
		}
	}
	_ = w.Flush() // to the terminal
	for _, note := range r.Notes {
		fmt.Fprintln(out, note)
	}
}
