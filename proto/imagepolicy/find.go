package imagepolicy

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-project/coffer/proto/sigstore"
)

// Repository is where an image's signatures are, which is the repository that it came from. What it returns matches the
// digests that were asked for. errdefs.ErrNotFound is an answer; other errors mean that nothing is known.
type Repository interface {
	// Tag returns what a tag names.
	Tag(ctx context.Context, tag string) (digest.Digest, error)
	// Manifest returns a manifest or an index of at most limit bytes.
	Manifest(ctx context.Context, dgst digest.Digest, limit int64) ([]byte, error)
	// Blob returns a whole blob.
	Blob(ctx context.Context, desc ocispec.Descriptor) ([]byte, error)
	// Referrers returns the list of those who refer to a manifest. NotFound: the registry keeps no such lists.
	Referrers(ctx context.Context, dgst digest.Digest) ([]ocispec.Descriptor, error)
}

// Limits of what is looked at. Whoever wants to drown a signature in others can do that to his own image only, and a
// registry that does it could as well answer nothing.
const (
	// maxManifest bounds a manifest of signatures and an index of referrers, in bytes.
	maxManifest = 1 << 20
	// maxSignatures bounds the signatures of one manifest, and the referrers of one image, that are looked at.
	maxSignatures = 64
	// maxReferrers bounds a list of referrers; those that are no signatures count, too.
	maxReferrers = 4096
)

// finder finds the signatures of digests.
type finder struct {
	repo   Repository
	places map[place][]result // that were looked at
	blobs  map[digest.Digest][]byte
}

// place is where the signatures of a digest may be: at their tag, or among its referrers.
type place struct {
	digest    digest.Digest
	referring bool
}

// result is a signature, or why one could not be had.
type result struct {
	signature *sigstore.Signature
	err       error
}

func newFinder(repo Repository) *finder {
	return &finder{repo: repo, places: map[place][]result{}, blobs: map[digest.Digest][]byte{}}
}

// signatures yields what is at the signatures' tag of a digest, and then what refers to it, which is looked for only when
// the first did not do.
func (f *finder) signatures(ctx context.Context, d digest.Digest) iter.Seq2[*sigstore.Signature, error] {
	return func(yield func(*sigstore.Signature, error) bool) {
		for _, r := range f.look(ctx, place{d, false}, f.tagged) {
			if !yield(r.signature, r.err) {
				return
			}
		}
		for _, r := range f.look(ctx, place{d, true}, f.referring) {
			if !yield(r.signature, r.err) {
				return
			}
		}
	}
}

// look looks at each place once.
func (f *finder) look(ctx context.Context, at place, look func(context.Context, digest.Digest) []result) []result {
	found, done := f.places[at]
	if !done {
		found = look(ctx, at.digest)
		f.places[at] = found
	}
	return found
}

// failed is the one result of a place that could not be looked at. That there is nothing is no fault.
func failed(what string, d digest.Digest, err error) []result {
	if isAbsent(err) {
		return nil
	}
	return []result{{err: fmt.Errorf("%s of %s: %w", what, d, err)}}
}

// SignatureTag is the tag of the signatures of a manifest.
func SignatureTag(d digest.Digest) string { return ReferrersTag(d) + ".sig" }

// ReferrersTag is the tag of the referrers of a manifest, in registries that keep no lists of them.
func ReferrersTag(d digest.Digest) string { return d.Algorithm().String() + "-" + d.Encoded() }

// tagged reads cosign's older form.
func (f *finder) tagged(ctx context.Context, d digest.Digest) []result {
	at, err := f.repo.Tag(ctx, SignatureTag(d))
	if err != nil {
		return failed("look for signatures", d, err)
	}
	raw, err := f.repo.Manifest(ctx, at, maxManifest)
	if err != nil {
		return failed("get signatures", d, err)
	}
	return f.payloads(ctx, d, raw)
}

// payloads reads the signatures of a manifest, the latest first, which is the last.
func (f *finder) payloads(ctx context.Context, d digest.Digest, raw []byte) []result {
	layers, err := parseLayers(raw)
	if err != nil {
		return failed("read signatures", d, err)
	}
	var list []result
	for i, layer := range slices.Backward(layers) {
		if len(list) == maxSignatures {
			return append(list, result{err: fmt.Errorf("%d older signatures of %s were not looked at: %w", i+1, d, errdefs.ErrPermissionDenied)})
		}
		if layer.MediaType != sigstore.MediaTypePayload {
			continue
		}
		list = append(list, f.payload(ctx, layer))
	}
	return list
}

func (f *finder) payload(ctx context.Context, layer ocispec.Descriptor) result {
	payload, err := f.blob(ctx, layer, sigstore.MaxPayload)
	if err != nil {
		return result{err: fmt.Errorf("get signature: %w", err)}
	}
	s, err := sigstore.NewSignature(payload, layer.Annotations[sigstore.AnnotationSignature])
	if err != nil {
		return result{err: fmt.Errorf("read signature: %w", err)}
	}
	return result{signature: s}
}

// referring reads bundles, and payloads that are stored like them.
func (f *finder) referring(ctx context.Context, d digest.Digest) []result {
	referrers, err := f.referrers(ctx, d)
	if err != nil {
		return failed("look for referrers", d, err)
	}
	if len(referrers) > maxReferrers {
		return failed("look for referrers", d, fmt.Errorf("%d of them, the limit is %d: %w", len(referrers), maxReferrers, errdefs.ErrInvalidArgument))
	}
	var list []result
	looked := 0
	for _, r := range referrers {
		if !maySign(r) {
			continue
		}
		if looked++; looked > maxSignatures {
			return append(list, result{err: fmt.Errorf("of the referrers of %s only %d were looked at: %w", d, maxSignatures, errdefs.ErrPermissionDenied)})
		}
		list = append(list, f.referrer(ctx, d, r)...)
	}
	return list
}

// referrers asks the registry, or reads the tag that stands in for it.
func (f *finder) referrers(ctx context.Context, d digest.Digest) ([]ocispec.Descriptor, error) {
	list, err := f.repo.Referrers(ctx, d)
	if err == nil || !isAbsent(err) {
		return list, err
	}
	at, err := f.repo.Tag(ctx, ReferrersTag(d))
	if err != nil {
		return nil, err
	}
	raw, err := f.repo.Manifest(ctx, at, maxManifest)
	if err != nil {
		return nil, err
	}
	return ParseReferrers(raw)
}

// ParseReferrers reads a list of referrers. InvalidArgument: it is none.
func ParseReferrers(raw []byte) ([]ocispec.Descriptor, error) {
	var index struct {
		MediaType string               `json:"mediaType"`
		Manifests []ocispec.Descriptor `json:"manifests"`
	}
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, fmt.Errorf("list of referrers is malformed: %w", errdefs.ErrInvalidArgument)
	}
	// The media type may be left to the header of the answer.
	if (index.MediaType != "" && index.MediaType != ocispec.MediaTypeImageIndex) || index.Manifests == nil {
		return nil, fmt.Errorf("what stands for a list of referrers (media type %.80q) is none: %w", index.MediaType, errdefs.ErrInvalidArgument)
	}
	return index.Manifests, nil
}

// maySign tells from a list's entry whether it may be a signature. Not all registries fill in what they could.
func maySign(r ocispec.Descriptor) bool {
	if r.MediaType != ocispec.MediaTypeImageManifest {
		return false
	}
	if r.ArtifactType != "" && r.ArtifactType != sigstore.ArtifactTypePayload && !strings.HasPrefix(r.ArtifactType, sigstore.MediaTypeBundles) {
		return false
	}
	predicate, said := r.Annotations[sigstore.AnnotationPredicate]
	return !said || predicate == sigstore.PredicateSignature
}

// referrer reads the signatures of one referrer. Others than signatures have none.
func (f *finder) referrer(ctx context.Context, d digest.Digest, r ocispec.Descriptor) []result {
	if r.Size <= 0 || r.Size > maxManifest || r.Digest.Validate() != nil {
		return failed("read referrer", d, fmt.Errorf("entry %.128q of %d bytes: %w", r.Digest, r.Size, errdefs.ErrInvalidArgument))
	}
	raw, err := f.repo.Manifest(ctx, r.Digest, r.Size)
	if err != nil {
		return failed("get referrer", d, err)
	}
	layers, err := parseLayers(raw)
	if err != nil {
		return failed("read referrer", d, err)
	}
	if len(layers) != 1 || !strings.HasPrefix(layers[0].MediaType, sigstore.MediaTypeBundles) {
		return f.payloads(ctx, d, raw)
	}
	bundle, err := f.blob(ctx, layers[0], sigstore.MaxBundle)
	if err != nil {
		return failed("get bundle", d, err)
	}
	s, err := sigstore.ParseBundle(bundle)
	if err != nil {
		return failed("read bundle", d, err)
	}
	return []result{{signature: s}}
}

// parseLayers reads the manifest of signatures.
func parseLayers(raw []byte) ([]ocispec.Descriptor, error) {
	var m struct {
		Layers    []ocispec.Descriptor `json:"layers"`
		Manifests json.RawMessage      `json:"manifests"`
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, fmt.Errorf("manifest is malformed: %w", errdefs.ErrInvalidArgument)
	}
	if m.Manifests != nil {
		return nil, fmt.Errorf("an index stands where signatures belong: %w", errdefs.ErrInvalidArgument)
	}
	return m.Layers, nil
}

// blob gets a blob once: signatures that were made one after the other often have one payload.
func (f *finder) blob(ctx context.Context, desc ocispec.Descriptor, limit int64) ([]byte, error) {
	if desc.Size <= 0 || desc.Size > limit || desc.Digest.Validate() != nil {
		return nil, fmt.Errorf("blob %.128q of %d bytes, the limit is %d: %w", desc.Digest, desc.Size, limit, errdefs.ErrInvalidArgument)
	}
	if raw, ok := f.blobs[desc.Digest]; ok {
		return raw, nil
	}
	raw, err := f.repo.Blob(ctx, ocispec.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size})
	if err != nil {
		return nil, err
	}
	f.blobs[desc.Digest] = raw
	return raw, nil
}
