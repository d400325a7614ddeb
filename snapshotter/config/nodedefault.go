package config

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/platforms"

	"github.com/coffer-project/coffer/snapshotter"
	"github.com/coffer-project/coffer/snapshotter/forget"
	"github.com/coffer-project/coffer/snapshotter/images"
)

// NodeDefault is about the second snapshotter, which decides image by image and is to be containerd's default.
type NodeDefault struct {
	// Address is empty where there is none.
	Address string   `toml:"address"`
	Root    string   `toml:"root"`
	Guest   []string `toml:"guest"`
}

func (n NodeDefault) validate(c Config, fault faultFunc) {
	checkRoot("node_default.root", n.Root, fault)
	if n.Root == c.Root {
		fault("node_default.root", "%q is the root of the other snapshotter; each needs its own", n.Root)
	}
	if n.Address != "" {
		checkSocket("node_default.address", n.Address, fault)
	}
	if n.Address == c.Address {
		fault("node_default.address", "%q is the address of the other snapshotter; each needs its own", n.Address)
	}
	if _, err := snapshotter.NewRules(n.Guest, snapshotter.ModeReference); err != nil {
		fault("node_default.guest", "%v", err)
	}
}

// OpenNodeDefault makes the second snapshotter of a valid configuration; nil where there is to be none.
func (c Config) OpenNodeDefault(ctx context.Context) (*snapshotter.Snapshotter, error) {
	if c.NodeDefault.Address == "" {
		return nil, nil
	}
	platform := platforms.DefaultSpec()
	if c.Platform != "" {
		var err error
		if platform, err = platforms.Parse(c.Platform); err != nil {
			return nil, fmt.Errorf("platform: %w", err)
		}
	}
	catalog, err := images.New(c.ContainerdAddress, platform)
	if err != nil {
		return nil, err
	}
	forgetter, err := forget.New(ctx, c.ContainerdAddress)
	if err != nil {
		return nil, errors.Join(err, catalog.Close())
	}
	decider, err := snapshotter.NewNodeDefault(catalog, forgetter, c.NodeDefault.Guest)
	if err != nil {
		return nil, errors.Join(err, forgetter.Close(), catalog.Close())
	}
	return snapshotter.New(ctx, c.NodeDefault.Root,
		snapshotter.WithNodeDefault(decider), snapshotter.WithOverlayOptions(c.Overlay.MountOptions))
}
