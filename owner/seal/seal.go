package seal

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/coffer-project/coffer/proto/kbs"
	"github.com/coffer-project/coffer/proto/keyprovider"
)

const (
	// maxDocument bounds manifests and configurations in bytes.
	maxDocument     = 8 << 20
	defaultParallel = 3
)

// Options say how an image is encrypted.
type Options struct {
	// KeyID names the KEK at the broker, KEK is its 32 bytes.
	KeyID kbs.ResourceURI
	KEK   []byte
	// Keys gets the KEK before the image becomes visible; nil when the KEK is at the broker already.
	Keys KeyStore
	// Wrap is how layer keys are wrapped; empty means keyprovider.WrapGCM.
	Wrap keyprovider.WrapType
	// Platforms chooses images of an index (like linux/amd64); empty means all. With exactly one the result is that image
	// and no index.
	Platforms []string
	// Layers chooses layers by their number from 0; empty means all. Negative numbers count from the end.
	Layers []int
	// Parallel is how many layers are worked on at a time; 0 means 3.
	Parallel int
	// Progress is called now and then, from several goroutines. May be nil.
	Progress func(Event)
}

// Result is what was written.
type Result struct {
	// Desc is the manifest or index that the destination's reference names now.
	Desc ocispec.Descriptor
	// Images are the manifests, one per platform.
	Images []Image
}

// Image is one manifest of a result.
type Image struct {
	Platform  string
	Digest    digest.Digest
	Encrypted int // layers that were encrypted
	Layers    int
}

// Encrypt reads an image from src and writes its encrypted form to dst.
func Encrypt(ctx context.Context, src Source, dst Destination, o Options) (*Result, error) {
	if err := o.prepare(); err != nil {
		return nil, err
	}
	s := &sealer{src: src, dst: dst, o: o}
	result, err := s.run(ctx)
	if err != nil {
		return nil, fmt.Errorf("encrypt %s: %w", src, err)
	}
	return result, nil
}

func (o *Options) prepare() error {
	if o.Wrap == "" {
		o.Wrap = keyprovider.WrapGCM
	}
	if o.Parallel == 0 {
		o.Parallel = defaultParallel
	}
	if o.Progress == nil {
		o.Progress = func(Event) {}
	}
	var errs []error
	if err := o.KeyID.Validate(); err != nil {
		errs = append(errs, err)
	}
	if len(o.KEK) != keyprovider.KEKSize {
		errs = append(errs, fmt.Errorf("key has %d bytes, want %d: %w", len(o.KEK), keyprovider.KEKSize, errdefs.ErrInvalidArgument))
	}
	for _, p := range o.Platforms {
		if _, err := platforms.Parse(p); err != nil {
			errs = append(errs, fmt.Errorf("platform %q: %w: %w", p, err, errdefs.ErrInvalidArgument))
		}
	}
	return errors.Join(errs...)
}

// sealer is one run.
type sealer struct {
	src Source
	dst Destination
	o   Options
}

func (s *sealer) run(ctx context.Context) (*Result, error) {
	top, raw, err := Document(ctx, s.src)
	if err != nil {
		return nil, err
	}
	if !isIndex(top.MediaType) {
		desc, img, out, err := s.image(ctx, raw, "")
		if err != nil {
			return nil, err
		}
		return s.publish(ctx, desc, out, []Image{img})
	}
	return s.index(ctx, raw)
}

// index encrypts the chosen images of an index.
func (s *sealer) index(ctx context.Context, raw []byte) (*Result, error) {
	var index ocispec.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, fmt.Errorf("parse index: %w", err)
	}
	chosen, err := choose(index.Manifests, s.o.Platforms)
	if err != nil {
		return nil, err
	}
	var (
		images []Image
		last   []byte
	)
	index.MediaType, index.Manifests = ocispec.MediaTypeImageIndex, nil
	for _, m := range chosen {
		raw, err := s.fetch(ctx, m)
		if err != nil {
			return nil, err
		}
		desc, img, out, err := s.image(ctx, raw, platforms.Format(*m.Platform))
		if err != nil {
			return nil, err
		}
		desc.Platform, desc.Annotations = m.Platform, m.Annotations
		index.Manifests, images, last = append(index.Manifests, desc), append(images, img), out
	}
	if len(chosen) == 1 && len(s.o.Platforms) == 1 {
		desc := index.Manifests[0]
		desc.Platform = nil
		return s.publish(ctx, desc, last, images)
	}
	out, err := json.Marshal(index)
	if err != nil {
		return nil, fmt.Errorf("encode index: %w", err)
	}
	return s.publish(ctx, describe(ocispec.MediaTypeImageIndex, out), out, images)
}

// choose takes the images of an index that are for the wanted platforms. Entries that are no image (attestations of build
// tools, which name a digest that will not exist any more) are left out.
func choose(manifests []ocispec.Descriptor, wanted []string) ([]ocispec.Descriptor, error) {
	var chosen []ocispec.Descriptor
	matched := make([]bool, len(wanted))
	for _, m := range manifests {
		if m.Platform == nil || m.Platform.OS == "unknown" || isIndex(m.MediaType) {
			continue
		}
		if len(wanted) == 0 {
			chosen = append(chosen, m)
		}
		for i, w := range wanted {
			p, err := platforms.Parse(w)
			if err != nil {
				return nil, fmt.Errorf("platform %q: %w", w, err)
			}
			if !matched[i] && platforms.OnlyStrict(p).Match(*m.Platform) {
				matched[i] = true
				chosen = append(chosen, m)
			}
		}
	}
	for i, w := range wanted {
		if !matched[i] {
			return nil, fmt.Errorf("image has no manifest for platform %s: %w", w, errdefs.ErrNotFound)
		}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("index names no image: %w", errdefs.ErrNotFound)
	}
	return chosen, nil
}

// image encrypts one image. Its manifest is returned and not yet written.
func (s *sealer) image(ctx context.Context, raw []byte, platform string) (ocispec.Descriptor, Image, []byte, error) {
	fail := func(err error) (ocispec.Descriptor, Image, []byte, error) {
		return ocispec.Descriptor{}, Image{}, nil, err
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return fail(fmt.Errorf("parse manifest: %w", err))
	}
	if len(m.Layers) == 0 {
		return fail(fmt.Errorf("manifest has no layers: %w", errdefs.ErrInvalidArgument))
	}
	if err := toOCI(&m); err != nil {
		return fail(err)
	}
	if err := s.copyConfig(ctx, m.Config); err != nil {
		return fail(err)
	}
	picked, err := pick(s.o.Layers, len(m.Layers))
	if err != nil {
		return fail(err)
	}
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(s.o.Parallel)
	for i := range m.Layers {
		group.Go(func() error {
			var err error
			if picked[i] {
				m.Layers[i], err = s.encryptLayer(gctx, m.Layers[i], platform)
			} else {
				err = s.copyLayer(gctx, m.Layers[i], platform)
			}
			if err != nil {
				return fmt.Errorf("layer %d of %d: %w", i+1, len(m.Layers), err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return fail(err)
	}
	out, err := json.Marshal(m)
	if err != nil {
		return fail(fmt.Errorf("encode manifest: %w", err))
	}
	desc := describe(ocispec.MediaTypeImageManifest, out)
	img := Image{Platform: platform, Digest: desc.Digest, Layers: len(m.Layers), Encrypted: len(picked)}
	if platform != "" {
		// The index that follows names it.
		if err := s.dst.WriteManifest(ctx, desc, out, false); err != nil {
			return fail(err)
		}
	}
	return desc, img, out, nil
}

// publish hands out the key and then makes the image visible.
func (s *sealer) publish(ctx context.Context, desc ocispec.Descriptor, raw []byte, images []Image) (*Result, error) {
	if s.o.Keys != nil {
		if err := s.o.Keys.Put(ctx, s.o.KeyID, s.o.KEK); err != nil {
			return nil, fmt.Errorf("hand key %s to the broker: %w", s.o.KeyID, err)
		}
	}
	if err := s.dst.WriteManifest(ctx, desc, raw, true); err != nil {
		return nil, err
	}
	return &Result{Desc: desc, Images: images}, nil
}

// pick turns the numbers of layers into a set; none means all.
func pick(numbers []int, count int) (map[int]bool, error) {
	picked := map[int]bool{}
	for i := range count {
		if len(numbers) == 0 {
			picked[i] = true
		}
	}
	for _, n := range numbers {
		i := n
		if i < 0 {
			i += count
		}
		if i < 0 || i >= count {
			return nil, fmt.Errorf("there is no layer %d, the image has %d: %w", n, count, errdefs.ErrInvalidArgument)
		}
		picked[i] = true
	}
	return picked, nil
}

// Document fetches the manifest or index of a source and completes its media type.
func Document(ctx context.Context, src Source) (ocispec.Descriptor, []byte, error) {
	desc, err := src.Resolve(ctx)
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	raw, err := (&sealer{src: src}).fetch(ctx, desc)
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	if !isIndex(desc.MediaType) && !isManifest(desc.MediaType) {
		return ocispec.Descriptor{}, nil, fmt.Errorf("%s is no container image: media type %.128q: %w", src, desc.MediaType, errdefs.ErrInvalidArgument)
	}
	return desc, raw, nil
}

// fetch reads a small document and checks it.
func (s *sealer) fetch(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	if desc.Size > maxDocument {
		return nil, fmt.Errorf("%s has %d bytes, the limit is %d: %w", desc.Digest, desc.Size, maxDocument, errdefs.ErrInvalidArgument)
	}
	rc, err := s.src.Fetch(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	raw, err := io.ReadAll(newVerifier(rc, desc))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", desc.Digest, err)
	}
	return raw, nil
}

func describe(mediaType string, raw []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
}

// copyConfig writes the configuration as it is.
func (s *sealer) copyConfig(ctx context.Context, desc ocispec.Descriptor) error {
	raw, err := s.fetch(ctx, desc)
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	there, err := s.dst.Exists(ctx, desc)
	if err != nil || there {
		return err
	}
	_, _, err = s.dst.Write(ctx, bytes.NewReader(raw))
	return err
}

func isIndex(mediaType string) bool {
	return slices.Contains([]string{ocispec.MediaTypeImageIndex, dockerManifestList}, mediaType)
}

func isManifest(mediaType string) bool {
	return slices.Contains([]string{ocispec.MediaTypeImageManifest, dockerManifest}, mediaType)
}
