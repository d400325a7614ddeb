package seal

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-project/coffer/proto/imagepolicy"
)

// What follows looks at the repository of an image beyond the image itself, for its signatures.

// maxBlob bounds the blobs that Blob holds in memory, in bytes.
const maxBlob = 1 << 20

// Name is the repository with its host.
func (r *Registry) Name() string { return r.ref.Locator }

// Tag returns what another tag of the repository names. NotFound: nothing.
func (r *Registry) Tag(ctx context.Context, tag string) (digest.Digest, error) {
	raw, err := r.get(ctx, "manifests/"+tag, anyManifest, maxDocument)
	if err != nil {
		return "", fmt.Errorf("get tag %s of %s: %w", tag, r.ref.Locator, err)
	}
	return digest.FromBytes(raw), nil
}

// Manifest returns a manifest or an index of at most limit bytes.
func (r *Registry) Manifest(ctx context.Context, dgst digest.Digest, limit int64) ([]byte, error) {
	return r.checked(ctx, "manifests/", dgst, limit)
}

// Blob returns a small blob.
func (r *Registry) Blob(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	return r.checked(ctx, "blobs/", desc.Digest, min(desc.Size, maxBlob))
}

func (r *Registry) checked(ctx context.Context, kind string, dgst digest.Digest, limit int64) ([]byte, error) {
	if err := dgst.Validate(); err != nil {
		return nil, fmt.Errorf("digest %.128q: %w: %w", dgst, err, errdefs.ErrInvalidArgument)
	}
	raw, err := r.get(ctx, kind+dgst.String(), anyManifest, limit)
	if err != nil {
		return nil, fmt.Errorf("get %s of %s: %w", dgst, r.ref.Locator, err)
	}
	if dgst.Algorithm().FromBytes(raw) != dgst {
		return nil, fmt.Errorf("registry %s sent other bytes than those of %s: %w", r.host.Host, dgst, errdefs.ErrFailedPrecondition)
	}
	return raw, nil
}

// Referrers lists what refers to a manifest. NotFound: the registry keeps no such lists.
func (r *Registry) Referrers(ctx context.Context, dgst digest.Digest) ([]ocispec.Descriptor, error) {
	raw, err := r.get(ctx, "referrers/"+dgst.String(), ocispec.MediaTypeImageIndex, maxDocument)
	if err != nil {
		return nil, fmt.Errorf("list referrers of %s: %w", dgst, err)
	}
	return imagepolicy.ParseReferrers(raw)
}

// PutManifest stores a manifest or an index under a tag of the repository, or under its digest.
func (r *Registry) PutManifest(ctx context.Context, name, mediaType string, raw []byte) error {
	resp, err := r.send(ctx, http.MethodPut, r.url("manifests", name), map[string]string{"Content-Type": mediaType}, &source{r: bytes.NewReader(raw), size: int64(len(raw))})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		return r.refused("push "+name, resp)
	}
	return nil
}

// anyManifest is what is asked for where any document will do.
var anyManifest = strings.Join([]string{
	ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex,
	"application/vnd.docker.distribution.manifest.v2+json", "application/vnd.docker.distribution.manifest.list.v2+json", "*/*",
}, ", ")

// get reads a document of at most limit bytes.
func (r *Registry) get(ctx context.Context, path, accept string, limit int64) ([]byte, error) {
	resp, err := r.send(ctx, http.MethodGet, r.url(path), map[string]string{"Accept": accept}, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusNotAcceptable, http.StatusNotImplemented:
		if !strings.HasPrefix(path, "referrers/") {
			return nil, r.refused("read", resp)
		}
		// Registries that do not know the referrers API answer with any of these.
		return nil, fmt.Errorf("registry %s answered %s: %w", r.host.Host, resp.Status, errdefs.ErrNotFound)
	default:
		return nil, r.refused("read", resp)
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read from registry %s: %w: %w", r.host.Host, err, errdefs.ErrUnavailable)
	}
	if int64(len(raw)) > limit {
		return nil, fmt.Errorf("registry %s sent more than %d bytes: %w", r.host.Host, limit, errdefs.ErrFailedPrecondition)
	}
	return raw, nil
}
