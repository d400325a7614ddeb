package images

import (
	"context"
	"fmt"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/opencontainers/go-digest"
)

// Names returns what the image with the manifest is called, also where the name is that of an index with it. There is
// none while an image is pulled for the first time.
func (c *Client) Names(ctx context.Context, manifest digest.Digest) (names []string, err error) {
	err = c.ask(ctx, "names of image "+manifest.String(), func(ctx context.Context) error {
		resp, err := c.records.List(ctx, &imagesapi.ListImagesRequest{})
		if err != nil {
			return errgrpc.ToNative(err)
		}
		for _, record := range resp.GetImages() {
			image, err := c.load(ctx, digest.Digest(record.GetTarget().GetDigest()))
			if ctx.Err() != nil {
				return ctx.Err()
			}
			// What cannot be read is of another platform, or no image.
			if err == nil && image.Manifest == manifest {
				names = append(names, record.GetName())
			}
		}
		return nil
	})
	return names, err
}

// Has tells whether the content store has the content with the digest.
func (c *Client) Has(ctx context.Context, d digest.Digest) (bool, error) {
	if err := d.Validate(); err != nil {
		return false, fmt.Errorf("content %q: %w: %w", d, err, errdefs.ErrInvalidArgument)
	}
	err := c.ask(ctx, "content "+d.String(), func(ctx context.Context) error {
		_, err := c.content.Info(ctx, d)
		return err
	})
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}
