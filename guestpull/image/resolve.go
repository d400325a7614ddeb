package image

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-project/coffer/guestpull/decrypt"
	"github.com/coffer-project/coffer/guestpull/mediatype"
	"github.com/coffer-project/coffer/proto/imagepolicy"
)

// maxDocument bounds an index, a manifest or a configuration in bytes while it is fetched.
const maxDocument = 4 << 20

// resolved is an image whose documents were fetched and read.
type resolved struct {
	ref    string
	target digest.Digest
	digest digest.Digest
	config *ocispec.Image
	layers []*layer
	// verdict is the image security policy's.
	verdict imagepolicy.Verdict
}

// layer is one layer on its way.
type layer struct {
	desc   ocispec.Descriptor
	kind   mediatype.Layer
	diffID digest.Digest
	// id is the layer's name in the store.
	id digest.Digest
	// cipher deciphers the layer; nil for plain layers.
	cipher *decrypt.Layer
	keyID  string
	// unpacked is the sum of file sizes, known after the layer was unpacked.
	unpacked int64
}

// resolve finds the manifest and the configuration that a request means.
func (p *Puller) resolve(ctx context.Context, req Request, rec *recorder) (*resolved, error) {
	defer rec.span(phaseResolve)()
	target, err := p.target(ctx, req)
	if err != nil {
		return nil, err
	}
	raw, err := p.registry.Manifest(ctx, req.Reference, target, maxDocument)
	if err != nil {
		return nil, err
	}
	found := &resolved{ref: req.Reference, target: target, digest: target}
	desc, isIndex, err := p.verifier.Choose(raw, req.Platform)
	if err != nil {
		return nil, fmt.Errorf("read manifest %s: %w", target, err)
	}
	if isIndex {
		found.digest = desc.Digest
		if raw, err = p.registry.Manifest(ctx, req.Reference, desc.Digest, desc.Size); err != nil {
			return nil, err
		}
	}
	if wish := digest.Digest(req.Digest); wish != "" && wish != found.target && wish != found.digest {
		return nil, fmt.Errorf("host asks for manifest %s, and the reference names %s: %w", wish, found.digest, errdefs.ErrFailedPrecondition)
	}
	manifest, err := p.verifier.Manifest(raw)
	if err != nil {
		return nil, fmt.Errorf("read manifest %s: %w", found.digest, err)
	}
	return found, p.configure(ctx, found, manifest, req.Platform)
}

// target is the digest to start from. One in the reference counts more than the host's, which is compared later; a tag is
// resolved once and never looked at again.
func (p *Puller) target(ctx context.Context, req Request) (digest.Digest, error) {
	text := req.Digest
	if _, inRef, ok := strings.Cut(req.Reference, "@"); ok {
		text = inRef
	}
	if text == "" {
		return p.registry.Resolve(ctx, req.Reference)
	}
	d, err := digest.Parse(text)
	if err != nil {
		return "", fmt.Errorf("digest %.128q: %w: %w", text, err, errdefs.ErrInvalidArgument)
	}
	return d, nil
}

// configure fetches the configuration and matches its layers with those of the manifest.
func (p *Puller) configure(ctx context.Context, found *resolved, manifest *ocispec.Manifest, platform string) error {
	rc, err := p.registry.Blob(ctx, found.ref, manifest.Config, nil)
	if err != nil {
		return err
	}
	defer rc.Close()
	raw, err := io.ReadAll(io.LimitReader(rc, maxDocument+1))
	if err != nil {
		return err
	}
	if len(raw) > maxDocument {
		return fmt.Errorf("image configuration is larger than %d bytes: %w", maxDocument, errdefs.ErrInvalidArgument)
	}
	if len(manifest.Layers) == 0 {
		return fmt.Errorf("image has no layers: %w", errdefs.ErrInvalidArgument)
	}
	config, err := p.verifier.Config(raw, len(manifest.Layers), platform)
	if err != nil {
		return err
	}
	found.config = config
	for i, desc := range manifest.Layers {
		kind, err := mediatype.ParseLayer(desc.MediaType)
		if err != nil {
			return fmt.Errorf("layer %s: %w", desc.Digest, err)
		}
		found.layers = append(found.layers, &layer{desc: desc, kind: kind, diffID: config.RootFS.DiffIDs[i]})
	}
	return nil
}

// unlock gets the keys of all encrypted layers before the first byte of any layer is fetched, and names the layers.
func (p *Puller) unlock(ctx context.Context, found *resolved, rec *recorder) error {
	defer rec.span(phaseAttest)()
	parent := digest.Digest("")
	for _, l := range found.layers {
		if l.kind.Encrypted {
			cipher, keyID, err := p.decrypter.Unlock(ctx, l.desc)
			if err != nil {
				return err
			}
			l.cipher, l.keyID = cipher, keyID
		}
		l.id = layerID(parent, l)
		parent = l.id
	}
	return nil
}

// layerID names a layer by everything that its content and the right to read it rest on, and by the layers below, from
// which it takes directory attributes. A chain of diff ids would not do: an image could list the diff ids of somebody
// else's encrypted layers and be handed their plaintext from the store without having the key.
func layerID(parent digest.Digest, l *layer) digest.Digest {
	return digest.FromString(strings.Join([]string{
		parent.String(), l.diffID.String(), l.desc.Digest.String(), l.desc.MediaType, l.keyID,
	}, "\n"))
}

// sizes are the fewest bytes that each layer may take: unpacked layers are hardly ever smaller than packed ones.
func (r *resolved) sizes() map[digest.Digest]int64 {
	sizes := make(map[digest.Digest]int64, len(r.layers))
	for _, l := range r.layers {
		sizes[l.id] = l.desc.Size
	}
	return sizes
}
