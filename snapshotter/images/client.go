package images

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	"github.com/containerd/containerd/v2/core/content"
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
)

const (
	// DefaultAddress is where containerd listens if nobody says otherwise.
	DefaultAddress = "/run/containerd/containerd.sock"
	// timeout bounds one question. containerd itself waits for the snapshotter meanwhile.
	timeout = 5 * time.Second
	// returning is how long a question waits for a containerd that was away: it may be back and not yet tried again.
	returning = time.Second
)

// Client asks one containerd. It is safe for concurrent use.
type Client struct {
	address    string
	platform   platforms.MatchComparer
	conn       *grpc.ClientConn
	records    imagesapi.ImagesClient
	containers containersapi.ContainersClient
	content    content.Store

	mu    sync.Mutex
	cache map[digest.Digest]*Image
}

// New makes a client of the containerd that listens on a unix socket. It connects when first asked, so containerd need
// not run. Of an image for several platforms, only the manifest for the given one counts, as with containerd itself.
func New(address string, platform ocispec.Platform) (*Client, error) {
	conn, err := Dial(address)
	if err != nil {
		return nil, err
	}
	return &Client{
		address: address, platform: platforms.Only(platform), conn: conn,
		records: imagesapi.NewImagesClient(conn), containers: containersapi.NewContainersClient(conn), content: contentproxy.NewContentStore(conn),
		cache: map[digest.Digest]*Image{},
	}, nil
}

// Close drops the connection, if there is one.
func (c *Client) Close() error { return c.conn.Close() }

// ask runs one question with its deadline and names it in an error. NotFound, InvalidArgument and ResourceExhausted come
// through; that containerd does not answer, or not in time, is errdefs.ErrUnavailable.
func (c *Client) ask(ctx context.Context, about string, question func(ctx context.Context) error) error {
	namespace, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return fmt.Errorf("ask containerd for %s: %w", about, err)
	}
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(ctx, namespace), timeout)
	defer cancel()
	c.awaitReturn(ctx)
	err = question(ctx)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.DeadlineExceeded), errdefs.IsUnavailable(err):
		return fmt.Errorf("containerd at %s does not answer about %s (is containerd_address in the snapshotter's configuration right?): %w: %w",
			c.address, about, err, errdefs.ErrUnavailable)
	}
	return fmt.Errorf("ask containerd for %s: %w", about, err)
}

// awaitReturn gives a containerd that did not answer last time the time of a few attempts.
func (c *Client) awaitReturn(ctx context.Context) {
	if c.conn.GetState() == connectivity.TransientFailure {
		ctx, cancel := context.WithTimeout(ctx, returning)
		defer cancel()
		c.conn.WaitForStateChange(ctx, connectivity.TransientFailure)
	}
}

// Manifest returns the image whose manifest has the digest, or an index of which has. It works as soon as containerd
// has fetched the documents, also before the image has a name. NotFound: containerd does not have them.
func (c *Client) Manifest(ctx context.Context, d digest.Digest) (image *Image, err error) {
	err = c.ask(ctx, "manifest "+d.String(), func(ctx context.Context) (err error) {
		image, err = c.load(ctx, d)
		return err
	})
	return image, err
}

// Containing returns every image that has a layer with the chain ID, in no order: those that were pulled, and those that
// are being pulled as far as their manifest and configuration have arrived. What cannot be read is left out.
func (c *Client) Containing(ctx context.Context, chain digest.Digest) (found []*Image, err error) {
	err = c.ask(ctx, "images with layer "+chain.String(), func(ctx context.Context) error {
		manifests, err := c.manifests(ctx)
		if err != nil {
			return err
		}
		for _, d := range manifests {
			image, err := c.load(ctx, d)
			if err != nil {
				if ctx.Err() != nil || errdefs.IsUnavailable(err) {
					return err
				}
				continue // of another platform and never fetched in full, of a strange form, or just removed
			}
			if slices.Contains(image.Chains, chain) {
				found = append(found, image)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return found, nil
}
