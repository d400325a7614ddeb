package config

import (
	"context"

	"github.com/coffer-project/coffer/snapshotter"
)

// Open makes the snapshotter that a valid configuration describes.
func (c Config) Open(ctx context.Context) (*snapshotter.Snapshotter, error) {
	rules, err := c.Images.Rules()
	if err != nil {
		return nil, err
	}
	opts := []snapshotter.Opt{snapshotter.WithRules(rules), snapshotter.WithOverlayOptions(c.Overlay.MountOptions)}
	if c.Platform != "" {
		opts = append(opts, snapshotter.WithPlatform(c.Platform))
	}
	return snapshotter.New(ctx, c.Root, opts...)
}
