package seal

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Configuration is what runs of an image, and the digests that name it.
type Configuration struct {
	// Target is what the reference names: an index, or the manifest itself.
	Target digest.Digest
	// Manifest is the one for the platform.
	Manifest digest.Digest
	Config   ocispec.ImageConfig
}

// ReadConfiguration fetches the manifest and the configuration of an image for a platform such as linux/amd64, and nothing else.
// NotFound: the image has none for the platform. What is fetched matches its digests.
func ReadConfiguration(ctx context.Context, src Source, platform string) (*Configuration, error) {
	want, err := platforms.Parse(platform)
	if err != nil {
		return nil, fmt.Errorf("platform %q: %w: %w", platform, err, errdefs.ErrInvalidArgument)
	}
	s := &sealer{src: src}
	desc, raw, err := Document(ctx, src)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", src, err)
	}
	out := &Configuration{Target: desc.Digest, Manifest: desc.Digest}
	if isIndex(desc.MediaType) {
		if desc, raw, err = s.forPlatform(ctx, raw, platforms.Only(want)); err != nil {
			return nil, fmt.Errorf("read %s: %s: %w", src, platform, err)
		}
		out.Manifest = desc.Digest
	}
	var manifest ocispec.Manifest
	if err := json.Unmarshal(raw, &manifest); err != nil {
		return nil, fmt.Errorf("read %s: parse manifest %s: %w", src, desc.Digest, err)
	}
	config, err := s.fetch(ctx, manifest.Config)
	if err != nil {
		return nil, fmt.Errorf("read configuration of %s: %w", src, err)
	}
	var img ocispec.Image
	if err := json.Unmarshal(config, &img); err != nil {
		return nil, fmt.Errorf("read %s: parse configuration %s: %w", src, manifest.Config.Digest, err)
	}
	out.Config = img.Config
	return out, nil
}

// forPlatform fetches the manifest that an index has for a platform.
func (s *sealer) forPlatform(ctx context.Context, raw []byte, match platforms.MatchComparer) (ocispec.Descriptor, []byte, error) {
	var index ocispec.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		return ocispec.Descriptor{}, nil, fmt.Errorf("parse index: %w", err)
	}
	var best *ocispec.Descriptor
	for i, m := range index.Manifests {
		if m.Platform == nil || !isManifest(m.MediaType) || !match.Match(*m.Platform) {
			continue
		}
		if best == nil || match.Less(*m.Platform, *best.Platform) {
			best = &index.Manifests[i]
		}
	}
	if best == nil {
		return ocispec.Descriptor{}, nil, fmt.Errorf("index has no manifest for it: %w", errdefs.ErrNotFound)
	}
	doc, err := s.fetch(ctx, *best)
	return *best, doc, err
}
