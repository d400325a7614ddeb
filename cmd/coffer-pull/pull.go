package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v2"

	"github.com/coffer-project/coffer/cmd/internal/bar"
	"github.com/coffer-project/coffer/guestpull/image"
)

// owner is who the layers belong to; a pull by hand has no container.
const owner = "coffer-pull"

// drawPause is the time between two pictures of the bar.
const drawPause = 100 * time.Millisecond

// pull is the one-shot form.
func pull(c *cli.Context) error {
	if c.NArg() != 2 {
		return usageError{fmt.Errorf("want IMAGE and DIR, got %d arguments", c.NArg())}
	}
	dir, err := claim(c.Args().Get(1))
	if err != nil {
		return err
	}
	img, took, err := pullTo(c, dir)
	if err != nil {
		return errors.Join(err, dir.giveUp())
	}
	if err := dir.settle(); err != nil {
		return err
	}
	r := newReport(img, took)
	if c.Bool("json") {
		enc := json.NewEncoder(c.App.Writer)
		enc.SetIndent("", "  ")
		return enc.Encode(r)
	}
	return r.show(c.App.Writer)
}

// pullTo pulls with a bar, where a person looks.
func pullTo(c *cli.Context, dir *folder) (*image.Image, time.Duration, error) {
	tracker := image.NewTracker()
	p, err := newPuller(c, dir.path, tracker)
	if err != nil {
		return nil, 0, err
	}
	stop := draw(c.Context, c.App.ErrWriter, tracker)
	start := time.Now()
	img, err := p.Pull(c.Context, image.Request{
		ContainerID: owner, Reference: c.Args().First(), Digest: c.String("digest"), Platform: c.String("platform"),
	})
	took := time.Since(start)
	stop()
	if err != nil {
		return nil, took, pullError{err}
	}
	return img, took, nil
}

// draw shows the pull on a terminal until the returned function is called, which wipes it away.
func draw(ctx context.Context, out io.Writer, tracker *image.Tracker) (stop func()) {
	width, terminal := bar.Width(out)
	if !terminal {
		return func() {}
	}
	screen := bar.NewScreen(out, width)
	ctx, cancel := context.WithCancel(ctx)
	drawn := make(chan struct{})
	go func() {
		defer close(drawn)
		ticker := time.NewTicker(drawPause)
		defer ticker.Stop()
		for {
			if p, err := tracker.Latest(owner); err == nil {
				// A terminal that cannot be written to is no reason to end a pull.
				_ = screen.Draw([]string{bar.Pull{
					Phase: p.Stage, LayersDone: p.LayersDone, Layers: p.Layers, BytesFetched: p.BytesFetched, TotalBytes: p.Bytes, Rate: p.Rate, Took: p.Took,
				}.String()})
			}
			select {
			case <-ticker.C:
			case <-ctx.Done():
				_ = screen.Draw(nil)
				return
			}
		}
	}()
	return func() {
		cancel()
		<-drawn
	}
}

// folder is the target of a pull.
type folder struct {
	path string
	made bool // it was missing before
}

// claim takes an empty folder, or makes it. AlreadyExists: it holds something, which the store would remove.
func claim(path string) (*folder, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	err = os.Mkdir(path, 0o755)
	if err == nil {
		return &folder{path: path, made: true}, nil
	}
	if !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("make folder for the image: %w", err)
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, fmt.Errorf("folder for the image: %w", err)
	}
	if len(entries) > 0 {
		return nil, fmt.Errorf("folder %s is not empty; name one that is empty or missing: %w", path, errdefs.ErrAlreadyExists)
	}
	return &folder{path: path}, nil
}

// settle removes what only the work needed.
func (f *folder) settle() error {
	if err := os.Remove(filepath.Join(f.path, "staging")); err != nil {
		return fmt.Errorf("tidy folder: %w", err)
	}
	return nil
}

// giveUp makes the folder as it was.
func (f *folder) giveUp() error {
	err := errors.Join(os.RemoveAll(filepath.Join(f.path, "staging")), os.RemoveAll(filepath.Join(f.path, "layers")))
	if f.made {
		err = errors.Join(err, os.Remove(f.path))
	}
	if err != nil {
		return fmt.Errorf("remove what was pulled: %w", err)
	}
	return nil
}
