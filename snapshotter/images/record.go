package images

import (
	"context"
	"fmt"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/opencontainers/go-digest"
)

// Record is an image as containerd names it.
type Record struct {
	// Name is what users call the image: a reference, and with CRI also the digest of its configuration.
	Name string
	// Target is the digest of its manifest or index.
	Target digest.Digest
	// Labels are containerd's own for this name.
	Labels map[string]string
}

// Named returns the record of a name, such as registry.example/app:1. NotFound: no image has it (yet: containerd gives
// the name at the end of a pull).
func (c *Client) Named(ctx context.Context, name string) (record Record, err error) {
	err = c.ask(ctx, "image "+name, func(ctx context.Context) error {
		resp, err := c.records.Get(ctx, &imagesapi.GetImageRequest{Name: name})
		if err == nil {
			record = recordOf(resp.GetImage())
		}
		return errgrpc.ToNative(err)
	})
	return record, err
}

// Targeting returns the records whose target has the digest, in no order.
func (c *Client) Targeting(ctx context.Context, d digest.Digest) (found []Record, err error) {
	if err := d.Validate(); err != nil {
		return nil, fmt.Errorf("images of %q: %w: %w", d, err, errdefs.ErrInvalidArgument)
	}
	err = c.ask(ctx, "images of "+d.String(), func(ctx context.Context) error {
		resp, err := c.records.List(ctx, &imagesapi.ListImagesRequest{Filters: []string{fmt.Sprintf("target.digest==%q", d)}})
		for _, i := range resp.GetImages() {
			found = append(found, recordOf(i))
		}
		return errgrpc.ToNative(err)
	})
	return found, err
}

func recordOf(i *imagesapi.Image) Record {
	return Record{Name: i.GetName(), Target: digest.Digest(i.GetTarget().GetDigest()), Labels: i.GetLabels()}
}
