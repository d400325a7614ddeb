package main

import (
	"context"
	"fmt"
	"runtime"
	"strconv"

	"github.com/coffer-project/coffer/integration/bench/chart"
	"github.com/coffer-project/coffer/integration/bench/stats"
	"github.com/coffer-project/coffer/integration/program"
)

// series shows how the cost of a pull changes with one property alone: number of layers, of files, or of cores.
type series struct {
	// By is what changes: layers and files at the same number of bytes, cores for the same image.
	By     string  `json:"by"`
	Points []point `json:"points"`
}

// point has the medians of a series' runs at one place.
type point struct {
	N    int64   `json:"n"`
	CPU  float64 `json:"cpu_s"`
	Wall float64 `json:"wall_s"`
	// Speed is megabytes (10^6) of tar per second of wall time; PerByte the CPU nanoseconds per byte of tar, and PerFile what
	// one more file costs in CPU microseconds, against the point before.
	Speed   float64  `json:"mb_per_s"`
	PerByte float64  `json:"cpu_ns_per_byte"`
	PerFile *float64 `json:"cpu_us_per_file,omitempty"`
}

const (
	scalingBytes = 96e6
	byLayers     = "layers"
	byFiles      = "files"
	byCores      = "cores"
)

// scalingImages are the images of the series, by what changes.
func scalingImages() map[string][]imageSpec {
	images := map[string][]imageSpec{}
	for _, n := range []int64{1, 2, 4, 8} {
		spec := imageSpec{Name: fmt.Sprintf("layers-%d", n), Encoder: gzipGo}
		for range n {
			spec.Layers = append(spec.Layers, layerSpec{Content: contentApp, Bytes: scalingBytes / n, Mean: 45e3})
		}
		images[byLayers] = append(images[byLayers], spec)
	}
	for _, n := range []int64{1000, 8000, 32000} {
		images[byFiles] = append(images[byFiles], imageSpec{
			Name: fmt.Sprintf("files-%d", n), Encoder: gzipGo,
			Layers: []layerSpec{{Content: contentText, Bytes: scalingBytes, Mean: scalingBytes / n}},
		})
	}
	last := images[byLayers][len(images[byLayers])-1]
	images[byCores] = []imageSpec{last}
	return images
}

// scale measures Coffer alone along each series.
func (b *bench) scale(ctx context.Context, cache string, quick bool, runs int, r *report) error {
	for _, by := range []string{byLayers, byFiles, byCores} {
		specs := scalingImages()[by]
		if quick {
			shrink(specs)
		}
		images, err := ensureImages(ctx, cache, specs)
		if err != nil {
			return err
		}
		s := series{By: by}
		for _, img := range images {
			counts := []int{0} // all cores
			if by == byCores {
				counts = coreCounts(runtime.NumCPU())
			}
			for _, cores := range counts {
				p, err := b.point(ctx, img, cores, runs)
				if err != nil {
					return fmt.Errorf("%s: %w", img.Name, err)
				}
				switch by {
				case byLayers:
					p.N = int64(len(img.Layers))
				case byFiles:
					p.N = img.files()
				case byCores:
					p.N = int64(cores)
				}
				program.Say("by %-8s %6d  %6.2f s CPU %6.2f s wall %6.2f ns of CPU per byte", by, p.N, p.CPU, p.Wall, p.PerByte)
				s.add(p, by == byFiles)
			}
		}
		r.Scaling = append(r.Scaling, s)
	}
	return nil
}

// add appends a point and, on request, compares it with the one before.
func (s *series) add(p point, perFile bool) {
	if n := len(s.Points); perFile && n > 0 && p.N > s.Points[n-1].N {
		cost := (p.CPU - s.Points[n-1].CPU) / float64(p.N-s.Points[n-1].N) * 1e6
		p.PerFile = &cost
	}
	s.Points = append(s.Points, p)
}

// point pulls an image several times, on that many cores; 0 means all.
func (b *bench) point(ctx context.Context, img *image, cores, runs int) (point, error) {
	tool := *b.tools[nameCoffer].(*coffer)
	if cores > 0 {
		tool.prefix = []string{"taskset", "--cpu-list", "0-" + strconv.Itoa(cores-1)}
	}
	var cpu, wall []float64
	for range max(runs, 1) {
		u, err := b.once(ctx, &tool, img)
		if err != nil {
			return point{}, err
		}
		cpu, wall = append(cpu, u.CPU), append(wall, u.Wall)
	}
	bytes := 0.0
	for _, l := range img.Layers {
		bytes += float64(l.Tar)
	}
	p := point{CPU: stats.Median(cpu), Wall: stats.Median(wall)}
	p.Speed, p.PerByte = bytes/p.Wall/1e6, p.CPU/bytes*1e9
	return p, nil
}

// coreCounts are 1, 2, 4 and so on up to all.
func coreCounts(all int) []int {
	var counts []int
	for n := 1; n < all; n *= 2 {
		counts = append(counts, n)
	}
	return append(counts, all)
}

func (img *image) files() (n int64) {
	for _, l := range img.Layers {
		n += l.Files
	}
	return n
}

// scalingChart draws CPU time per byte along each series.
func (r *report) scalingChart() []byte {
	c := chart.Bars{
		Title: "CPU time of coffer-pull per byte of tar, by number of layers, files and cores (flat is good)",
		Note:  fmt.Sprintf("%s, %d processors, %s; median", r.Machine.Processor, r.Machine.Processors, r.Machine.Go),
		Unit:  "ns",
	}
	for _, s := range r.Scaling {
		g := chart.Group{Name: s.By}
		for _, p := range s.Points {
			g.Bars = append(g.Bars, chart.Bar{Name: strconv.FormatInt(p.N, 10), Value: p.PerByte})
		}
		c.Groups = append(c.Groups, g)
	}
	return c.SVG()
}
