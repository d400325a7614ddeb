package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/integration/program"
)

// The names of tools as results have them.
const (
	nameCoffer     = "coffer"
	nameContainerd = "containerd_imgcrypt"
	nameSkopeo     = "skopeo_umoci"
	nameBuildah    = "buildah"
)

var peerOrder = []string{nameContainerd, nameSkopeo, nameBuildah}

func peerNames() string { return strings.Join(peerOrder, ", ") }

// bench is what all measurements share.
type bench struct {
	place
	tools map[string]tool
	order []string // of the tools that can be measured, Coffer first
	notes []string // who cannot, and why
	who   map[string]string
}

func newBench(c *cli.Context, cache, scratch string) (_ *bench, retErr error) {
	b := &bench{place: place{scratch: scratch}, who: map[string]string{}}
	defer func() {
		if retErr != nil {
			retErr = errors.Join(retErr, b.close())
		}
	}()
	var err error
	if b.keyProvider, err = startKeyProvider(scratch); err != nil {
		return nil, err
	}
	if b.registry, err = startRegistry(c.Context, filepath.Join(cache, fmt.Sprintf("v%d", generatorVersion))); err != nil {
		return nil, err
	}
	b.tools = map[string]tool{
		nameCoffer:     &coffer{place: &b.place, binary: c.String("coffer-pull")},
		nameContainerd: &containerd{place: &b.place, decoder: c.String("decoder")},
		nameSkopeo:     &skopeo{&b.place},
		nameBuildah:    &buildah{&b.place},
	}
	return b, b.choose(c.StringSlice("peers"))
}

// choose takes the tools that are wanted. One that was named must be there; others are left out, with a note.
func (b *bench) choose(names []string) error {
	for _, name := range names {
		if name != "none" && !slices.Contains(peerOrder, name) {
			return fmt.Errorf("--peers %s: the peers are %s", name, peerNames())
		}
	}
	for _, name := range append([]string{nameCoffer}, peerOrder...) {
		if name != nameCoffer && len(names) > 0 && !slices.Contains(names, name) {
			continue
		}
		who, err := b.tools[name].prepare()
		switch {
		case err == nil:
			b.who[name] = who
			b.order = append(b.order, name)
		case name == nameCoffer || slices.Contains(names, name):
			return fmt.Errorf("%s: %w", name, err)
		default:
			b.notes = append(b.notes, fmt.Sprintf("%s is not measured: %v", name, err))
		}
	}
	return nil
}

func (b *bench) close() error {
	if b.keyProvider != nil {
		b.keyProvider.close()
	}
	if b.registry != nil {
		return b.registry.close()
	}
	return nil
}

// run measures limits first and then each image with each tool in turn, as often as asked for.
func (b *bench) run(ctx context.Context, images []*image, runs int, r *report) error {
	if reclaimed() {
		b.notes = append(b.notes, "the hypervisor takes free memory back: times of large images hold what it takes to get it again")
	}
	r.Notes, r.Tools = b.notes, b.who
	for _, note := range b.notes {
		program.Say("%s", note)
	}
	program.Say("measuring the machine's limits")
	speeds, err := b.limits(ctx, images)
	if err != nil {
		return err
	}
	r.Limits = speeds.table()
	for _, img := range images {
		res := r.image(img, speeds.bound(img, runtime.NumCPU()))
		for i := range max(runs, 1) {
			for _, name := range b.order {
				if res.Failed[name] != "" {
					continue
				}
				u, err := b.once(ctx, b.tools[name], img)
				if ctx.Err() != nil {
					return ctx.Err()
				}
				if err != nil && name == nameCoffer {
					return fmt.Errorf("%s: %w", img.Name, err)
				}
				if err != nil {
					res.Failed[name] = err.Error()
					program.Say("%-16s run %d  %-20s cannot: %.160s", img.Name, i+1, name, err)
					continue
				}
				res.add(name, i+1, u, img)
				program.Say("%-16s run %d  %-20s %6.2f s CPU %6.2f s wall %5.0f MiB", img.Name, i+1, name, u.CPU, u.Wall, float64(u.memory)/(1<<20))
			}
		}
		res.sum()
	}
	return nil
}

func (b *bench) limits(ctx context.Context, images []*image) (_ *speeds, retErr error) {
	target, unmount, err := b.target()
	if err != nil {
		return nil, err
	}
	defer func() { retErr = errors.Join(retErr, unmount()) }()
	// The image with the most bytes tells most about receiving them.
	s, err := measureLimits(ctx, target, b.registry, slices.MaxFunc(images, func(a, b *image) int { return int(a.packed() - b.packed()) }))
	if err != nil {
		return nil, err
	}
	for _, img := range images {
		if err := s.measureInflate(ctx, img); err != nil {
			return nil, fmt.Errorf("measure inflating %s: %w", img.Name, err)
		}
	}
	return s, nil
}

// once pulls an image into a fresh target.
func (b *bench) once(ctx context.Context, t tool, img *image) (_ usage, retErr error) {
	target, unmount, err := b.target()
	if err != nil {
		return usage{}, err
	}
	defer func() { retErr = errors.Join(retErr, unmount()) }()
	return t.pull(ctx, img, target)
}

// reclaimed reports whether the kernel tells the hypervisor of free memory.
func reclaimed() bool {
	devices, _ := filepath.Glob("/sys/bus/virtio/drivers/virtio_balloon/virtio*")
	raw, err := os.ReadFile("/sys/module/page_reporting/parameters/page_reporting_order")
	if err != nil || len(devices) == 0 {
		return false
	}
	var order int
	_, err = fmt.Sscan(string(raw), &order)
	return err == nil && order <= 10 // which is the largest that there is
}

// target mounts an empty memory file system, with large pages as a guest's has them.
func (b *bench) target() (string, func() error, error) {
	dir := filepath.Join(b.scratch, "target")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", nil, err
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NODEV, "size=90%,mode=0755,huge=within_size"); err != nil {
		return "", nil, fmt.Errorf("mount a memory file system: %w", err)
	}
	return dir, func() error {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount the target: %w", err)
		}
		return nil
	}, nil
}

func (img *image) packed() (n int64) {
	for _, l := range img.Layers {
		n += l.Packed
	}
	return n
}
