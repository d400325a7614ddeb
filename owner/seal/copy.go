package seal

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// CopyOptions say what of an image is copied.
type CopyOptions struct {
	// Platform takes one image out of an index (like linux/amd64); empty copies the index whole.
	Platform string
	// Progress is called now and then, from several goroutines. May be nil.
	Progress func(Event)
}

// Copy copies an image as it is, so that digests and signatures keep their meaning.
func Copy(ctx context.Context, src Source, dst Destination, o CopyOptions) (ocispec.Descriptor, error) {
	c := &sealer{src: src, dst: dst, o: Options{Progress: o.Progress, Parallel: defaultParallel}}
	if c.o.Progress == nil {
		c.o.Progress = func(Event) {}
	}
	desc, err := c.copyAll(ctx, o.Platform)
	if err != nil {
		return desc, fmt.Errorf("copy %s: %w", src, err)
	}
	return desc, nil
}

func (s *sealer) copyAll(ctx context.Context, platform string) (ocispec.Descriptor, error) {
	top, raw, err := Document(ctx, s.src)
	if err != nil {
		return top, err
	}
	if isIndex(top.MediaType) {
		var index ocispec.Index
		if err := json.Unmarshal(raw, &index); err != nil {
			return top, fmt.Errorf("parse index: %w", err)
		}
		if platform != "" {
			chosen, err := choose(index.Manifests, []string{platform})
			if err != nil {
				return top, err
			}
			top, index.Manifests = chosen[0], nil
			if raw, err = s.fetch(ctx, top); err != nil {
				return top, err
			}
		}
		for _, desc := range index.Manifests {
			inner, err := s.fetch(ctx, desc)
			if err != nil {
				return top, err
			}
			if err := s.copyImage(ctx, inner, name(desc.Platform)); err != nil {
				return top, err
			}
			if err := s.dst.WriteManifest(ctx, desc, inner, false); err != nil {
				return top, err
			}
		}
	}
	if isManifest(top.MediaType) {
		if err := s.copyImage(ctx, raw, platform); err != nil {
			return top, err
		}
	}
	top.Platform = nil
	return top, s.dst.WriteManifest(ctx, top, raw, true)
}

// copyImage copies the configuration and the layers of one manifest.
func (s *sealer) copyImage(ctx context.Context, raw []byte, platform string) error {
	var m ocispec.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return fmt.Errorf("parse manifest: %w", err)
	}
	if err := s.copyConfig(ctx, m.Config); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(s.o.Parallel)
	for _, layer := range m.Layers {
		group.Go(func() error { return s.copyLayer(ctx, layer, platform) })
	}
	return group.Wait()
}

func name(platform *ocispec.Platform) string {
	if platform == nil {
		return ""
	}
	return platforms.Format(*platform)
}
