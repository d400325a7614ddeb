package snapshotter

import (
	"context"

	"github.com/opencontainers/go-digest"

	"github.com/coffer-project/coffer/snapshotter/images"
)

// Images answers what containerd knows of the images on this node; *images.Client is the real one. Every answer may be
// errdefs.ErrUnavailable, and then the snapshotter must go on with less.
type Images interface {
	// Manifest returns the image with this manifest or index.
	Manifest(ctx context.Context, d digest.Digest) (*images.Image, error)
	// Containing returns the images that have a layer with this chain ID.
	Containing(ctx context.Context, chain digest.Digest) ([]*images.Image, error)
	// Targeting returns the names of the image with this manifest or index.
	Targeting(ctx context.Context, d digest.Digest) ([]images.Record, error)
	// Names returns what the image with this manifest is called, also where the name is that of an index with it.
	Names(ctx context.Context, manifest digest.Digest) ([]string, error)
	// Named returns the image with this full name.
	Named(ctx context.Context, name string) (images.Record, error)
	// Container returns the container with this id.
	Container(ctx context.Context, id string) (images.Container, error)
	Close() error
}

// WithImages lets the snapshotter ask for images. It closes i with itself, also when New fails.
func WithImages(i Images) Opt { return func(o *options) { o.images = i } }
