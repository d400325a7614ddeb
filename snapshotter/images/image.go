package images

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxLayers is more than any image has: the kernel stacks 500.
const maxLayers = 1024

// encryptedSuffix ends the media type of a layer that OCI image encryption made.
const encryptedSuffix = "+encrypted"

// Image is what the manifest of one platform and its configuration say. It is shared: callers must not change it.
type Image struct {
	// Manifest and ConfigDigest are the digests of the two documents.
	Manifest, ConfigDigest digest.Digest
	// Annotations are the manifest's.
	Annotations map[string]string
	// Layers are in order, the lowest first. There is one chain ID in Chains for each.
	Layers []Layer
	Chains []digest.Digest
	// Config is the part of the configuration that a container starts from: user, volumes, labels and so on.
	Config   ocispec.ImageConfig
	Platform ocispec.Platform
}

// Layer is a layer as the manifest describes it.
type Layer struct {
	MediaType   string
	Digest      digest.Digest
	Size        int64
	Annotations map[string]string
}

// Encrypted tells whether the layer can be read with a key only.
func (l Layer) Encrypted() bool { return strings.HasSuffix(l.MediaType, encryptedSuffix) }

// Encrypted tells whether any layer is.
func (i *Image) Encrypted() bool {
	for _, l := range i.Layers {
		if l.Encrypted() {
			return true
		}
	}
	return false
}

// Top is the chain ID of the whole root file system; empty for an image without layers.
func (i *Image) Top() digest.Digest {
	if len(i.Chains) == 0 {
		return ""
	}
	return i.Chains[len(i.Chains)-1]
}

// parseImage reads both documents. The configuration may be that of an artifact, which has no root file system; then
// there are no chains. Errors are errdefs.ErrInvalidArgument.
func parseImage(manifestDigest digest.Digest, manifest ocispec.Manifest, config []byte) (*Image, error) {
	var c ocispec.Image
	if err := json.Unmarshal(config, &c); err != nil {
		return nil, fmt.Errorf("decode configuration %s: %w: %w", manifest.Config.Digest, err, errdefs.ErrInvalidArgument)
	}
	if n := len(manifest.Layers); n > maxLayers || len(c.RootFS.DiffIDs) > maxLayers {
		return nil, fmt.Errorf("image %s has %d layers, more than %d: %w", manifestDigest, n, maxLayers, errdefs.ErrInvalidArgument)
	}
	if n := len(c.RootFS.DiffIDs); n > 0 && n != len(manifest.Layers) {
		return nil, fmt.Errorf("image %s has %d layers, its configuration knows %d: %w", manifestDigest, len(manifest.Layers), n, errdefs.ErrInvalidArgument)
	}
	image := &Image{
		Manifest: manifestDigest, ConfigDigest: manifest.Config.Digest, Annotations: manifest.Annotations,
		Config: c.Config, Platform: c.Platform,
	}
	for _, l := range manifest.Layers {
		image.Layers = append(image.Layers, Layer{MediaType: l.MediaType, Digest: l.Digest, Size: l.Size, Annotations: l.Annotations})
	}
	for _, d := range c.RootFS.DiffIDs {
		if err := d.Validate(); err != nil {
			return nil, fmt.Errorf("image %s: layer content %q: %w: %w", manifestDigest, d, err, errdefs.ErrInvalidArgument)
		}
	}
	image.Chains = identity.ChainIDs(c.RootFS.DiffIDs)
	return image, nil
}
