package config

import (
	"context"

	"github.com/containerd/platforms"

	"github.com/coffer-project/coffer/snapshotter"
	"github.com/coffer-project/coffer/snapshotter/images"
)

// Open makes the snapshotter that a valid configuration describes.
func (c Config) Open(ctx context.Context) (*snapshotter.Snapshotter, error) {
	rules, err := c.Images.Rules()
	if err != nil {
		return nil, err
	}
	opts := []snapshotter.Opt{snapshotter.WithRules(rules), snapshotter.WithOverlayOptions(c.Overlay.MountOptions)}
	platform := platforms.DefaultSpec()
	if c.Platform != "" {
		opts = append(opts, snapshotter.WithPlatform(c.Platform))
		if platform, err = platforms.Parse(c.Platform); err != nil {
			return nil, err
		}
	}
	client, err := images.New(c.ContainerdAddress, platform)
	if err != nil {
		return nil, err
	}
	opts = append(opts, snapshotter.WithImages(client))
	if c.Images.UnpackPause {
		opts = append(opts, snapshotter.WithPauseImages())
	}
	if !c.Images.NamedUsers {
		opts = append(opts, snapshotter.WithNumericUsers())
	}
	return snapshotter.New(ctx, c.Root, opts...)
}
