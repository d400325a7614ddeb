package sign

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-project/coffer/proto/imagepolicy"
	"github.com/coffer-project/coffer/proto/sigstore"
)

// Forms are the forms of signatures, see package sigstore.
var Forms = []string{FormTag, FormBundle}

// The forms of signatures.
const (
	// FormTag is the older one, at the tag sha256-HEX.sig.
	FormTag = "tag"
	// FormBundle is that of cosign 3.
	FormBundle = "bundle"
)

// Store is the repository of an image.
type Store interface {
	imagepolicy.Repository
	// Write stores a blob.
	Write(ctx context.Context, content io.Reader) (digest.Digest, int64, error)
	// PutManifest stores a manifest or an index under a tag, or under its digest.
	PutManifest(ctx context.Context, name, mediaType string, raw []byte) error
}

// Options say how an image is signed.
type Options struct {
	Key *Key
	// Identity is the name that the signature gives the image: its repository, with a tag where only that tag may have it.
	Identity string
	// Annotations are signed along. They mean nothing to guests.
	Annotations map[string]string
	// Forms chooses some of Forms; empty means all.
	Forms []string
}

// maxDocument bounds a manifest of signatures and an index of referrers that one more is added to, in bytes.
const maxDocument = 1 << 20

// Sign signs one manifest or index, in addition to the signatures that it has.
func Sign(ctx context.Context, store Store, target ocispec.Descriptor, o Options) error {
	claim := sigstore.Claim{Digest: target.Digest, Identity: o.Identity}
	for _, form := range Forms {
		if len(o.Forms) > 0 && !slices.Contains(o.Forms, form) {
			continue
		}
		attach := attachPayload
		if form == FormBundle {
			attach = attachBundle
		}
		if err := attach(ctx, store, target, claim, o); err != nil {
			return fmt.Errorf("sign %s (%s): %w", target.Digest, form, err)
		}
	}
	return nil
}

// emptyConfig is the configuration of manifests that are no image (OCI image specification, "Guidance for an Empty
// Descriptor").
func emptyConfig(ctx context.Context, store Store) (ocispec.Descriptor, error) {
	_, _, err := store.Write(ctx, bytes.NewReader(ocispec.DescriptorEmptyJSON.Data))
	desc := ocispec.DescriptorEmptyJSON
	desc.Data = nil
	return desc, err
}

// blob stores a document.
func blob(ctx context.Context, store Store, mediaType string, raw []byte) (ocispec.Descriptor, error) {
	d, size, err := store.Write(ctx, bytes.NewReader(raw))
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: size}, err
}

// attachPayload adds a signature to those at the signatures' tag.
func attachPayload(ctx context.Context, store Store, target ocispec.Descriptor, claim sigstore.Claim, o Options) error {
	payload, err := sigstore.EncodePayload(claim, o.Annotations)
	if err != nil {
		return err
	}
	sig, err := o.Key.signPayload(payload)
	if err != nil {
		return err
	}
	layer, err := blob(ctx, store, sigstore.MediaTypePayload, payload)
	if err != nil {
		return err
	}
	layer.Annotations = map[string]string{sigstore.AnnotationSignature: base64.StdEncoding.EncodeToString(sig)}
	tag := imagepolicy.SignatureTag(target.Digest)
	m, config, err := signatures(ctx, store, tag)
	if err != nil {
		return err
	}
	m.Layers = append(m.Layers, layer)
	// The configuration lists the layers as an image's would: registries exist that look.
	config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, layer.Digest)
	raw, err := json.Marshal(config)
	if err != nil {
		return fmt.Errorf("encode configuration of signatures: %w", err)
	}
	if m.Config, err = blob(ctx, store, ocispec.MediaTypeImageConfig, raw); err != nil {
		return err
	}
	return put(ctx, store, tag, ocispec.MediaTypeImageManifest, m)
}

// signatures reads what is at the signatures' tag, or begins it.
func signatures(ctx context.Context, store Store, tag string) (*ocispec.Manifest, *ocispec.Image, error) {
	m := &ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	config := &ocispec.Image{RootFS: ocispec.RootFS{Type: "layers"}}
	at, err := store.Tag(ctx, tag)
	if errdefs.IsNotFound(err) {
		return m, config, nil
	}
	if err != nil {
		return nil, nil, err
	}
	raw, err := store.Manifest(ctx, at, maxDocument)
	if err != nil {
		return nil, nil, err
	}
	if err := json.Unmarshal(raw, m); err != nil || m.MediaType != ocispec.MediaTypeImageManifest {
		return nil, nil, fmt.Errorf("tag %s holds no signatures that one could be added to: %w: %w", tag, err, errdefs.ErrFailedPrecondition)
	}
	for _, layer := range m.Layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, layer.Digest)
	}
	return m, config, nil
}

// put stores a manifest or an index.
func put(ctx context.Context, store Store, name, mediaType string, document any) error {
	raw, err := json.Marshal(document)
	if err != nil {
		return fmt.Errorf("encode manifest: %w", err)
	}
	if len(raw) > maxDocument {
		return fmt.Errorf("%s would have %d bytes, the limit is %d; remove old signatures: %w", name, len(raw), maxDocument, errdefs.ErrFailedPrecondition)
	}
	if name == "" {
		name = digest.FromBytes(raw).String()
	}
	return store.PutManifest(ctx, name, mediaType, raw)
}
