package sign

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-project/coffer/proto/imagepolicy"
	"github.com/coffer-project/coffer/proto/sigstore"
)

// attachBundle adds a bundle to the referrers of an image.
func attachBundle(ctx context.Context, store Store, target ocispec.Descriptor, claim sigstore.Claim, o Options) error {
	body, err := sigstore.EncodeStatement(claim, o.Annotations)
	if err != nil {
		return err
	}
	sig, err := o.Key.SignStatement(body)
	if err != nil {
		return err
	}
	bundle, err := sigstore.EncodeBundle(body, sig, o.Key.Public())
	if err != nil {
		return err
	}
	layer, err := blob(ctx, store, sigstore.MediaTypeBundle, bundle)
	if err != nil {
		return err
	}
	config, err := emptyConfig(ctx, store)
	if err != nil {
		return err
	}
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: sigstore.MediaTypeBundle,
		Config: config, Layers: []ocispec.Descriptor{layer},
		Subject: &ocispec.Descriptor{MediaType: target.MediaType, Digest: target.Digest, Size: target.Size},
		Annotations: map[string]string{
			ocispec.AnnotationCreated:    time.Now().UTC().Format(time.RFC3339),
			sigstore.AnnotationContent:   sigstore.ContentDSSE,
			sigstore.AnnotationPredicate: sigstore.PredicateSignature,
		},
	}
	if err := put(ctx, store, "", m.MediaType, m); err != nil {
		return err
	}
	return listReferrer(ctx, store, target.Digest, &m)
}

// listReferrer enters a manifest in the tag that stands in for the referrers API, where the registry has none (OCI
// distribution specification, "Referrers Tag Schema").
func listReferrer(ctx context.Context, store Store, target digest.Digest, m *ocispec.Manifest) error {
	_, err := store.Referrers(ctx, target)
	if !errdefs.IsNotFound(err) {
		return err
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode manifest: %w", err)
	}
	entry := ocispec.Descriptor{
		MediaType: m.MediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw)), ArtifactType: m.ArtifactType, Annotations: m.Annotations,
	}
	tag := imagepolicy.ReferrersTag(target)
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	at, err := store.Tag(ctx, tag)
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	if err == nil {
		raw, err := store.Manifest(ctx, at, maxDocument)
		if err != nil {
			return err
		}
		if index.Manifests, err = imagepolicy.ParseReferrers(raw); err != nil {
			return fmt.Errorf("tag %s: %w", tag, err)
		}
	}
	if slices.ContainsFunc(index.Manifests, func(d ocispec.Descriptor) bool { return d.Digest == entry.Digest }) {
		return nil
	}
	index.Manifests = append(index.Manifests, entry)
	return put(ctx, store, tag, index.MediaType, index)
}
