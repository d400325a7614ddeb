package seal

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-project/coffer/proto/keyprovider"
)

// Description is what can be said about an image without any key.
type Description struct {
	// Digest is what the reference names; MediaType tells whether that is an index.
	Digest    digest.Digest
	MediaType string
	Images    []ImageDescription
}

// ImageDescription is one platform's image.
type ImageDescription struct {
	// Platform is empty for an image without an index.
	Platform string
	Digest   digest.Digest
	Layers   []LayerDescription
}

// LayerDescription is one layer.
type LayerDescription struct {
	Digest    digest.Digest
	MediaType string
	Size      int64
	Encrypted bool
	// KeyIDs are the keys that open the layer, one for each recipient that a guest could be.
	KeyIDs []string
	// Fault says why the encryption annotations cannot be read; empty when they can, or when the layer is plain.
	Fault string
}

// Inspect describes the image of a source.
func Inspect(ctx context.Context, src Source) (*Description, error) {
	s := &sealer{src: src}
	top, raw, err := Document(ctx, src)
	if err != nil {
		return nil, fmt.Errorf("inspect %s: %w", src, err)
	}
	out := &Description{Digest: top.Digest, MediaType: top.MediaType}
	if !isIndex(top.MediaType) {
		img, err := describeImage(raw, top.Digest, "")
		if err != nil {
			return nil, fmt.Errorf("inspect %s: %w", src, err)
		}
		out.Images = []ImageDescription{img}
		return out, nil
	}
	var index ocispec.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, fmt.Errorf("inspect %s: parse index: %w", src, err)
	}
	for _, m := range index.Manifests {
		if m.Platform == nil || !isManifest(m.MediaType) {
			continue
		}
		raw, err := s.fetch(ctx, m)
		if err != nil {
			return nil, fmt.Errorf("inspect %s: %w", src, err)
		}
		img, err := describeImage(raw, m.Digest, platforms.Format(*m.Platform))
		if err != nil {
			return nil, fmt.Errorf("inspect %s: %w", src, err)
		}
		out.Images = append(out.Images, img)
	}
	return out, nil
}

func describeImage(raw []byte, dgst digest.Digest, platform string) (ImageDescription, error) {
	var m ocispec.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return ImageDescription{}, fmt.Errorf("parse manifest %s: %w", dgst, err)
	}
	img := ImageDescription{Platform: platform, Digest: dgst}
	for _, l := range m.Layers {
		img.Layers = append(img.Layers, describeLayer(l))
	}
	return img, nil
}

func describeLayer(desc ocispec.Descriptor) LayerDescription {
	l := LayerDescription{Digest: desc.Digest, MediaType: desc.MediaType, Size: desc.Size}
	l.Encrypted = strings.HasSuffix(desc.MediaType, encryptedSuffix)
	if !l.Encrypted {
		return l
	}
	text := desc.Annotations[keyprovider.LayerAnnotation]
	if text == "" {
		l.Fault = "no key for guests"
		return l
	}
	for part := range strings.SplitSeq(text, ",") {
		raw, err := base64.StdEncoding.DecodeString(part)
		if err != nil {
			l.Fault = "wrapped key is not base64"
			continue
		}
		p, err := keyprovider.ParsePacket(raw)
		if err != nil {
			l.Fault = err.Error()
			continue
		}
		if id := p.KeyID.String(); !slices.Contains(l.KeyIDs, id) {
			l.KeyIDs = append(l.KeyIDs, id)
		}
	}
	return l
}
