// Package verify reads the documents that describe an image: index, manifest and configuration. All three come from a
// registry that the guest does not trust. The caller has checked their digests, which says that they are what the
// reference names, not that they are sane; so they are read with limits and allow-lists here before anything else of
// the guest looks at them.
//
// The package must never fetch anything and never touch layers.
package verify

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-project/coffer/guestpull/mediatype"
)

// Limits bounds what an image may declare.
type Limits struct {
	// Document is the largest index or manifest in bytes, Config the largest configuration.
	Document, Config int64
	// Layers is the largest number of layers; the kernel's overlay cannot stack more than 500.
	Layers int
	// LayerSize is the largest layer in bytes as the registry holds it.
	LayerSize int64
}

// DefaultLimits are generous for real images: the largest seen in public registries use a hundredth of them.
func DefaultLimits() Limits {
	return Limits{Document: 4 << 20, Config: 4 << 20, Layers: 256, LayerSize: 1 << 40}
}

// Verifier reads image documents within limits.
type Verifier struct {
	limits Limits
}

// New returns a Verifier.
func New(limits Limits) *Verifier {
	return &Verifier{limits: limits}
}

// document has the fields that tell an index from a manifest.
type document struct {
	SchemaVersion int    `json:"schemaVersion"`
	MediaType     string `json:"mediaType"`
	Manifests     count  `json:"manifests"`
	Layers        count  `json:"layers"`
	FSLayers      count  `json:"fsLayers"`
}

// maxManifests is the largest number of manifests in an index; there are some dozens of platforms, with an attestation each.
const maxManifests = 1024

// Choose looks at the document that a reference names. For an index it returns the descriptor of the manifest that fits
// platform best and true; for a manifest it returns false. platform is written like linux/amd64.
func (v *Verifier) Choose(raw []byte, platform string) (desc ocispec.Descriptor, isIndex bool, err error) {
	doc, err := v.document(raw)
	if err != nil {
		return ocispec.Descriptor{}, false, err
	}
	if doc.Manifests == 0 && !mediatype.IsIndex(doc.MediaType) {
		return ocispec.Descriptor{}, false, nil
	}
	var index ocispec.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		return ocispec.Descriptor{}, true, fmt.Errorf("parse image index: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	desc, err = v.choose(index.Manifests, platform)
	return desc, true, err
}

func (v *Verifier) choose(manifests []ocispec.Descriptor, platform string) (ocispec.Descriptor, error) {
	want, err := platforms.Parse(platform)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("parse platform %q: %w: %w", platform, err, errdefs.ErrInvalidArgument)
	}
	matcher := platforms.Only(want)
	var (
		found   []ocispec.Descriptor
		offered []string
	)
	for _, m := range manifests {
		if m.Platform == nil || !mediatype.IsManifest(m.MediaType) {
			continue
		}
		if matcher.Match(*m.Platform) {
			found = append(found, m)
		}
		if name := platforms.Format(*m.Platform); len(offered) < 16 && len(name) < 64 {
			offered = append(offered, name)
		}
	}
	if len(found) == 0 {
		return ocispec.Descriptor{}, fmt.Errorf("image has no manifest for platform %s (it has %q): %w", platform, offered, errdefs.ErrNotFound)
	}
	slices.SortStableFunc(found, func(a, b ocispec.Descriptor) int {
		switch {
		case matcher.Less(*a.Platform, *b.Platform):
			return -1
		case matcher.Less(*b.Platform, *a.Platform):
			return 1
		default:
			return 0
		}
	})
	return found[0], v.descriptor("manifest", found[0], v.limits.Document)
}

// Manifest reads the manifest of one image.
func (v *Verifier) Manifest(raw []byte) (*ocispec.Manifest, error) {
	doc, err := v.document(raw)
	if err != nil {
		return nil, err
	}
	if doc.Manifests > 0 || mediatype.IsIndex(doc.MediaType) {
		return nil, fmt.Errorf("an index was found where the manifest of one image belongs: %w", errdefs.ErrInvalidArgument)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, fmt.Errorf("parse image manifest: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if !mediatype.IsConfig(m.Config.MediaType) {
		return nil, fmt.Errorf("this is not a container image: its configuration has media type %.128q: %w", m.Config.MediaType, errdefs.ErrNotImplemented)
	}
	if err := v.descriptor("configuration", m.Config, v.limits.Config); err != nil {
		return nil, err
	}
	if n := len(m.Layers); n > v.limits.Layers {
		return nil, fmt.Errorf("image has %d layers, the limit is %d: %w", n, v.limits.Layers, errdefs.ErrInvalidArgument)
	}
	for i, layer := range m.Layers {
		if err := v.descriptor(fmt.Sprintf("layer %d", i), layer, v.limits.LayerSize); err != nil {
			return nil, err
		}
		if _, err := mediatype.ParseLayer(layer.MediaType); err != nil {
			return nil, fmt.Errorf("layer %d (%s): %w", i, layer.Digest, err)
		}
	}
	return &m, nil
}

// Config reads the configuration of an image with that many layers and checks that it is for the platform.
func (v *Verifier) Config(raw []byte, layers int, platform string) (*ocispec.Image, error) {
	if int64(len(raw)) > v.limits.Config {
		return nil, fmt.Errorf("image configuration has %d bytes, the limit is %d: %w", len(raw), v.limits.Config, errdefs.ErrInvalidArgument)
	}
	doc := struct {
		ocispec.Image
		// Nobody here asks for it, and in memory it may take a hundred times what it takes on the way.
		History json.RawMessage `json:"history"`
	}{}
	if err := json.Unmarshal(raw, &doc); err != nil {
		return nil, fmt.Errorf("parse image configuration: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	config := doc.Image
	if config.RootFS.Type != "layers" {
		return nil, fmt.Errorf("image configuration has rootfs type %.64q, want \"layers\": %w", config.RootFS.Type, errdefs.ErrInvalidArgument)
	}
	if n := len(config.RootFS.DiffIDs); n != layers {
		return nil, fmt.Errorf("image configuration lists %d layers and the manifest %d: %w", n, layers, errdefs.ErrInvalidArgument)
	}
	for i, id := range config.RootFS.DiffIDs {
		if err := id.Validate(); err != nil {
			return nil, fmt.Errorf("image configuration, diff id %d: %w: %w", i, err, errdefs.ErrInvalidArgument)
		}
	}
	want, err := platforms.Parse(platform)
	if err != nil {
		return nil, fmt.Errorf("parse platform %q: %w: %w", platform, err, errdefs.ErrInvalidArgument)
	}
	// Images without an architecture exist (built from scratch by hand); there is nothing to compare then.
	if config.Architecture != "" && !platforms.Only(want).Match(config.Platform) {
		return nil, fmt.Errorf("image is built for %.64s and this guest runs %s: %w", platforms.Format(config.Platform), platform, errdefs.ErrInvalidArgument)
	}
	return &config, nil
}

func (v *Verifier) document(raw []byte) (*document, error) {
	if int64(len(raw)) > v.limits.Document {
		return nil, fmt.Errorf("image manifest has %d bytes, the limit is %d: %w", len(raw), v.limits.Document, errdefs.ErrInvalidArgument)
	}
	var doc document
	if err := json.Unmarshal(raw, &doc); err != nil {
		return nil, fmt.Errorf("parse image manifest: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	switch {
	case doc.Manifests > maxManifests:
		return nil, fmt.Errorf("image index lists %d manifests, the limit is %d: %w", doc.Manifests, maxManifests, errdefs.ErrInvalidArgument)
	case int(doc.Layers) > v.limits.Layers:
		return nil, fmt.Errorf("image has %d layers, the limit is %d: %w", doc.Layers, v.limits.Layers, errdefs.ErrInvalidArgument)
	case doc.SchemaVersion == 1 || doc.FSLayers > 0:
		return nil, fmt.Errorf("image has a Docker schema 1 manifest; push it again with a current tool: %w", errdefs.ErrNotImplemented)
	case doc.SchemaVersion != 2:
		return nil, fmt.Errorf("image manifest has schema version %d, want 2: %w", doc.SchemaVersion, errdefs.ErrInvalidArgument)
	case doc.Manifests > 0 && doc.Layers > 0:
		// Such a document means one thing to a reader of indexes and another to a reader of manifests.
		return nil, fmt.Errorf("image manifest is an index and a manifest at once: %w", errdefs.ErrInvalidArgument)
	case doc.MediaType != "" && !mediatype.IsIndex(doc.MediaType) && !mediatype.IsManifest(doc.MediaType):
		return nil, fmt.Errorf("image manifest has media type %.128q: %w", doc.MediaType, errdefs.ErrNotImplemented)
	case mediatype.IsManifest(doc.MediaType) && doc.Manifests > 0,
		mediatype.IsIndex(doc.MediaType) && doc.Layers > 0:
		return nil, fmt.Errorf("image manifest does not match its media type %q: %w", doc.MediaType, errdefs.ErrInvalidArgument)
	}
	return &doc, nil
}

func (v *Verifier) descriptor(what string, desc ocispec.Descriptor, limit int64) error {
	var errs []error
	if err := desc.Digest.Validate(); err != nil {
		errs = append(errs, fmt.Errorf("%s digest %.128q: %w: %w", what, desc.Digest, err, errdefs.ErrInvalidArgument))
	}
	if desc.Size <= 0 || desc.Size > limit {
		errs = append(errs, fmt.Errorf("%s size %d is outside 1..%d: %w", what, desc.Size, limit, errdefs.ErrInvalidArgument))
	}
	return errors.Join(errs...)
}
