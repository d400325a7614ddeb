package images

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// maxDocument bounds a manifest, index or configuration, in bytes. Registries themselves refuse above 4 MiB.
	maxDocument = 4 << 20
	// maxManifests bounds the images among which one is searched.
	maxManifests = 10000
	// maxCached bounds the images that are remembered, and maxCachedSize the documents of one, in bytes.
	maxCached     = 512
	maxCachedSize = 64 << 10
	// maxIndexDepth bounds indexes in indexes.
	maxIndexDepth = 2
)

// configLabel is set by containerd on every manifest that it fetches or imports; its value is the configuration's digest.
const configLabel = "containerd.io/gc.ref.content.config"

// manifests lists the manifests in the content store.
func (c *Client) manifests(ctx context.Context) (found []digest.Digest, err error) {
	err = c.content.Walk(ctx, func(info content.Info) error {
		if len(found) == maxManifests {
			return fmt.Errorf("this node has more than %d images, too many to search: %w", maxManifests, errdefs.ErrResourceExhausted)
		}
		found = append(found, info.Digest)
		return nil
	}, fmt.Sprintf("labels.%q", configLabel))
	return found, err
}

// load reads the image behind the digest of a manifest or index, or takes it from the cache. Digests never change their
// meaning, so that nothing in the cache is ever stale.
func (c *Client) load(ctx context.Context, d digest.Digest) (*Image, error) {
	c.mu.Lock()
	image, known := c.cache[d]
	c.mu.Unlock()
	if known {
		return image, nil
	}
	manifestDigest, manifest, size, err := c.manifest(ctx, d, maxIndexDepth)
	if err != nil {
		return nil, err
	}
	config, err := c.read(ctx, manifest.Config.Digest)
	if err != nil {
		return nil, err
	}
	if image, err = parseImage(manifestDigest, manifest, config); err != nil {
		return nil, err
	}
	if size+len(config) <= maxCachedSize {
		c.remember(d, image)
	}
	return image, nil
}

func (c *Client) remember(d digest.Digest, image *Image) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for other := range c.cache {
		if len(c.cache) < maxCached {
			break
		}
		// Any one, as the map gives them: a search reads all images in order, which would empty a cache of the latest ones.
		delete(c.cache, other)
	}
	c.cache[d] = image
}

// manifest reads a manifest, or the one in an index that is for our platform, and tells how large the documents are.
func (c *Client) manifest(ctx context.Context, d digest.Digest, depth int) (digest.Digest, ocispec.Manifest, int, error) {
	raw, err := c.read(ctx, d)
	if err != nil {
		return "", ocispec.Manifest{}, 0, err
	}
	manifest, children, err := decodeManifest(d, raw)
	if err != nil || len(children) == 0 {
		return d, manifest, len(raw), err
	}
	if depth == 0 {
		return "", manifest, 0, fmt.Errorf("indexes in indexes down to %s: %w", d, errdefs.ErrInvalidArgument)
	}
	ours := slices.DeleteFunc(children, func(m ocispec.Descriptor) bool {
		return m.Platform != nil && !c.platform.Match(*m.Platform)
	})
	if len(ours) == 0 {
		return "", manifest, 0, fmt.Errorf("index %s has no manifest for this platform: %w", d, errdefs.ErrNotFound)
	}
	slices.SortStableFunc(ours, c.better)
	found, manifest, size, err := c.manifest(ctx, ours[0].Digest, depth-1)
	return found, manifest, size + len(raw), err
}

// decodeManifest decodes a manifest, or the descriptors of an index. What would be read as one here and perhaps as the
// other elsewhere is neither: errdefs.ErrInvalidArgument.
func decodeManifest(d digest.Digest, raw []byte) (ocispec.Manifest, []ocispec.Descriptor, error) {
	var document struct {
		ocispec.Manifest
		Manifests []ocispec.Descriptor `json:"manifests"`
	}
	if err := json.Unmarshal(raw, &document); err != nil {
		return document.Manifest, nil, fmt.Errorf("decode manifest %s: %w: %w", d, err, errdefs.ErrInvalidArgument)
	}
	isManifest := document.Config.Digest != ""
	if isManifest == (len(document.Manifests) > 0) {
		return document.Manifest, nil, fmt.Errorf("%s is neither a manifest nor an index of manifests: %w", d, errdefs.ErrInvalidArgument)
	}
	return document.Manifest, document.Manifests, nil
}

// better orders descriptors as containerd does: the closest platform first, those of no stated platform last.
func (c *Client) better(a, b ocispec.Descriptor) int {
	switch {
	case a.Platform == nil && b.Platform == nil:
		return 0
	case a.Platform == nil:
		return 1
	case b.Platform == nil:
		return -1
	case c.platform.Less(*a.Platform, *b.Platform):
		return -1
	case c.platform.Less(*b.Platform, *a.Platform):
		return 1
	}
	return 0
}

// read reads a document. containerd has checked that its content has the digest.
func (c *Client) read(ctx context.Context, d digest.Digest) ([]byte, error) {
	if err := d.Validate(); err != nil {
		return nil, fmt.Errorf("document %q: %w: %w", d, err, errdefs.ErrInvalidArgument)
	}
	blob, err := c.content.ReaderAt(ctx, ocispec.Descriptor{Digest: d})
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	size := blob.Size()
	if size > maxDocument {
		return nil, fmt.Errorf("document %s has %d bytes, more than %d: %w", d, size, maxDocument, errdefs.ErrInvalidArgument)
	}
	raw := make([]byte, size)
	if n, err := blob.ReadAt(raw, 0); int64(n) < size {
		return nil, fmt.Errorf("read document %s: %w", d, err)
	}
	return raw, nil
}
