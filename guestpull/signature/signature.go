// Package signature lets a guest run only the images that the measured policy allows. It gets the policy (a
// containers-policy.json) from the measured document or from the key broker, and the signatures from the registry, or from
// the lookaside that the document names (a containers-registries.d(5) file); the verdict is package imagepolicy's.
//
// A policy of the key broker is asked for anew with each pull: it may have become stricter since the pod began. So no
// verdict is kept either, and an image whose layers are all here is judged like any other.
//
// The package must never let an image pass because something could not be asked.
package signature

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-project/coffer/guestpull/registry"
	"github.com/coffer-project/coffer/proto/imagepolicy"
	"github.com/coffer-project/coffer/proto/initdata"
)

// Fetch returns a resource of the key broker by its URI (kbs:///repository/type/tag).
type Fetch func(ctx context.Context, uri string) ([]byte, error)

// Registry is what signatures are fetched with. What it returns matches the digest that was asked for.
type Registry interface {
	Resolve(ctx context.Context, ref string) (digest.Digest, error)
	Manifest(ctx context.Context, ref string, dgst digest.Digest, limit int64) ([]byte, error)
	// Blob streams a blob. sink takes its bytes before; nil: none.
	Blob(ctx context.Context, ref string, desc ocispec.Descriptor, sink registry.Sink) (io.ReadCloser, error)
	// Referrers lists what refers to a manifest; NotFound: the registry keeps no such lists.
	Referrers(ctx context.Context, ref string, dgst digest.Digest) ([]ocispec.Descriptor, error)
	// Get returns what is at an address of a lookaside; NotFound: nothing is there.
	Get(ctx context.Context, address string, limit int64) ([]byte, error)
}

// Checker judges images. It is safe for concurrent use.
type Checker struct {
	registry Registry
	fetch    Fetch
	uri      string              // of the policy; empty: it is measured
	measured *imagepolicy.Policy // nil without
	// places are where OpenPGP signatures are, placesURI where that is asked for. At most one of them is set.
	places    *imagepolicy.Places
	placesURI string
}

// New returns the Checker that the measured settings ask for, or nil where they name no policy: then only digests bind
// what runs. fetch is nil without a key broker. InvalidArgument: the policy in the settings is malformed.
func New(settings *initdata.ImageSettings, registry Registry, fetch Fetch) (*Checker, error) {
	c := &Checker{registry: registry, fetch: fetch, uri: settings.SecurityPolicyURI, placesURI: settings.SigstoreConfigURI}
	if c.placesURI != "" && fetch == nil {
		return nil, fmt.Errorf("image.sigstore_config_uri %s: the guest was given no key broker (kbc in the initdata's cdh.toml): %w", c.placesURI, errdefs.ErrFailedPrecondition)
	}
	if settings.SigstoreConfig != "" {
		var err error
		if c.places, err = imagepolicy.ParsePlaces([]byte(settings.SigstoreConfig)); err != nil {
			return nil, err
		}
	}
	switch {
	case c.uri != "":
		if fetch == nil {
			return nil, fmt.Errorf("image.image_security_policy_uri %s: the guest was given no key broker (kbc in the initdata's cdh.toml): %w", c.uri, errdefs.ErrFailedPrecondition)
		}
		return c, nil
	case settings.SecurityPolicy != "":
		var err error
		if c.measured, err = imagepolicy.Parse([]byte(settings.SecurityPolicy)); err != nil {
			return nil, err
		}
		return c, nil
	default:
		return nil, nil
	}
}

// Check decides whether an image may run; see [imagepolicy.Policy.Check] for its errors.
func (c *Checker) Check(ctx context.Context, img imagepolicy.Image) (*imagepolicy.Verdict, error) {
	policy, err := c.policy(ctx)
	if err != nil {
		return nil, err
	}
	var keys imagepolicy.Keys
	if c.fetch != nil {
		keys = imagepolicy.Keys(c.fetch)
	}
	if c.places != nil || c.placesURI != "" {
		img.Lookaside = &imagepolicy.Lookaside{Places: c.lookaside, Get: c.registry.Get}
	}
	return policy.Check(ctx, img, repository{registry: c.registry, ref: img.Reference}, keys)
}

func (c *Checker) policy(ctx context.Context) (*imagepolicy.Policy, error) {
	if c.measured != nil {
		return c.measured, nil
	}
	raw, err := c.fetch(ctx, c.uri)
	if err != nil {
		return nil, fmt.Errorf("get image security policy: %w", err)
	}
	policy, err := imagepolicy.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.uri, err)
	}
	return policy, nil
}

// lookaside returns where OpenPGP signatures are. Like a policy, what the broker has is asked for anew each time.
func (c *Checker) lookaside(ctx context.Context) (*imagepolicy.Places, error) {
	if c.places != nil {
		return c.places, nil
	}
	raw, err := c.fetch(ctx, c.placesURI)
	if err != nil {
		return nil, fmt.Errorf("get image.sigstore_config_uri: %w", err)
	}
	places, err := imagepolicy.ParsePlaces(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.placesURI, err)
	}
	return places, nil
}

// repository is where an image came from.
type repository struct {
	registry Registry
	ref      string
}

// Tag resolves another tag of the repository.
func (r repository) Tag(ctx context.Context, tag string) (digest.Digest, error) {
	name, _, _ := strings.Cut(r.ref, "@")
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		name = name[:i]
	}
	return r.registry.Resolve(ctx, name+":"+tag)
}

// Manifest returns a manifest.
func (r repository) Manifest(ctx context.Context, dgst digest.Digest, limit int64) ([]byte, error) {
	return r.registry.Manifest(ctx, r.ref, dgst, limit)
}

// Blob reads a blob, which ends by itself where its size does.
func (r repository) Blob(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	rc, err := r.registry.Blob(ctx, r.ref, desc, nil)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	raw, err := io.ReadAll(rc)
	if err != nil {
		return nil, fmt.Errorf("read blob %s: %w", desc.Digest, err)
	}
	return raw, nil
}

// Referrers lists referrers.
func (r repository) Referrers(ctx context.Context, dgst digest.Digest) ([]ocispec.Descriptor, error) {
	return r.registry.Referrers(ctx, r.ref, dgst)
}
