// Package registry fetches image documents and layers from OCI registries, which it does not trust: every byte that it
// hands out was checked against the digest that was asked for, or is followed by an error instead of the end of file.
//
// It adds to containerd's client what a guest needs: registries from the measured configuration instead of files, a bound
// on every body, a time limit on silence, retries that respect Retry-After, resumption of broken layers, fail-over between
// mirrors, and errors that name the registry and the cure. It must never write a byte anywhere.
package registry

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"

	"github.com/coffer-project/coffer/guestpull/mediatype"

	// The digest algorithms that a reference may use register themselves.
	_ "crypto/sha256"
	_ "crypto/sha512"
)

const (
	manifests = "manifests"
	blobs     = "blobs"

	// maxTagged bounds a document that is fetched only to learn its digest, in bytes.
	maxTagged = 4 << 20
)

// Client fetches from registries. It is safe for concurrent use and keeps connections alive between calls.
type Client struct {
	config Config
	roots  *x509.CertPool
	turn   chan struct{} // held by whoever looks at whole
	whole  *setup        // nil until config.Late was heard

	buffers *buffers

	mu sync.Mutex
	// auth keeps the tokens of all registries.
	auth map[any]*authorizer
	// liars are the hosts, by digest, that sent other bytes than the digest's. They are not asked for it again.
	liars map[digest.Digest]map[string]bool
}

// New returns a client. It connects to nothing.
func New(config Config) (*Client, error) {
	if config.IdleTimeout == 0 {
		config.IdleTimeout = defaultIdleTimeout
	}
	if config.Attempts == 0 {
		config.Attempts = defaultAttempts
	}
	if config.MinRate == 0 {
		config.MinRate = defaultMinRate
	}
	if config.Streams == 0 {
		config.Streams = defaultStreams
	}
	roots, err := config.roots()
	if err != nil {
		return nil, err
	}
	whole, err := newSetup(config, roots)
	if err != nil {
		return nil, err
	}
	c := &Client{
		config: config, roots: roots, turn: make(chan struct{}, 1), whole: whole, buffers: newBuffers(),
		auth: map[any]*authorizer{}, liars: map[digest.Digest]map[string]bool{},
	}
	if config.Late != nil {
		c.whole = nil
	}
	return c, nil
}

// Resolve asks which digest a reference with a tag stands for now. Where the answer may not be left to the registry, the
// caller must compare it with a digest from a measured or signed source.
func (c *Client) Resolve(ctx context.Context, ref string) (digest.Digest, error) {
	var found digest.Digest
	err := c.each(ctx, ref, func(ep endpoint) error {
		if ep.noTags {
			return errNotMeant
		}
		var err error
		found, err = c.resolve(ctx, ep)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("resolve image %s: %w", ref, err)
	}
	return found, nil
}

// resolve asks one endpoint. Registries need neither know HEAD nor name the digest; then the document itself tells.
func (c *Client) resolve(ctx context.Context, ep endpoint) (digest.Digest, error) {
	tag, pinned, _ := strings.Cut(ep.ref.Object, "@")
	if pinned != "" {
		tag = pinned
	}
	resp, err := c.ask(ctx, ep, http.MethodHead, manifests, tag, acceptManifests())
	if err != nil {
		return "", err
	}
	closeBody(resp)
	named := resp.Header.Get("Docker-Content-Digest")
	if resp.StatusCode == http.StatusOK && named != "" {
		d := digest.Digest(named)
		if err := d.Validate(); err != nil {
			return "", fmt.Errorf("registry %s names digest %.128q: %w: %w", ep.host, named, err, errdefs.ErrFailedPrecondition)
		}
		return d, nil
	}
	raw, err := c.document(ctx, ep, tag, maxTagged)
	if err != nil {
		return "", err
	}
	return digest.FromBytes(raw), nil
}

// Manifest returns an index or a manifest by its digest; ref says in which repository it is. The bytes match the digest.
// A document larger than limit is errdefs.ErrFailedPrecondition.
func (c *Client) Manifest(ctx context.Context, ref string, dgst digest.Digest, limit int64) ([]byte, error) {
	var raw []byte
	err := c.each(ctx, ref, func(ep endpoint) error {
		if ep.noPull {
			return errNotMeant
		}
		b, err := c.manifest(ctx, ep, dgst, limit)
		raw = b
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("fetch manifest %s of %s: %w", dgst, ref, err)
	}
	return raw, nil
}

func (c *Client) manifest(ctx context.Context, ep endpoint, dgst digest.Digest, limit int64) ([]byte, error) {
	if err := dgst.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	raw, err := c.document(ctx, ep, dgst.String(), limit)
	if err != nil {
		return nil, err
	}
	if dgst.Algorithm().FromBytes(raw) != dgst {
		return nil, wrongBytes(ep.host, dgst)
	}
	return raw, nil
}

// document reads a whole manifest or index. One that breaks off is asked for again, as often as any request.
func (c *Client) document(ctx context.Context, ep endpoint, object string, limit int64) ([]byte, error) {
	for attempt := 1; ; attempt++ {
		raw, err := c.documentOnce(ctx, ep, object, limit)
		if err == nil || !errors.Is(err, errTruncated) || attempt >= c.config.Attempts {
			return raw, err
		}
		if err := pause(ctx, backoff(attempt), ep.host, err.Error()); err != nil {
			return nil, err
		}
	}
}

func (c *Client) documentOnce(ctx context.Context, ep endpoint, object string, limit int64) ([]byte, error) {
	resp, err := c.ask(ctx, ep, http.MethodGet, manifests, object, acceptManifests())
	if err != nil {
		return nil, err
	}
	defer closeBody(resp)
	raw, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	switch {
	case err != nil:
		return nil, err
	case int64(len(raw)) > limit:
		return nil, fmt.Errorf("registry %s sent a manifest larger than %d bytes: %w", ep.host, limit, errdefs.ErrFailedPrecondition)
	}
	return raw, nil
}

func acceptManifests() http.Header {
	return http.Header{"Accept": {strings.Join(mediatype.Manifests(), ", ")}}
}

func wrongBytes(host string, dgst digest.Digest) error {
	return fmt.Errorf("registry %s sent bytes that do not match digest %s: %w", host, dgst, errdefs.ErrFailedPrecondition)
}

// errNotMeant is an endpoint that the configuration does not use for a request.
var errNotMeant = errors.New("not meant for this")

// each calls fn for one endpoint after the other until one succeeds. The error is that of the last one, which is the
// registry itself; those of mirrors are joined to it.
func (c *Client) each(ctx context.Context, ref string, fn func(endpoint) error) error {
	endpoints, err := c.endpoints(ctx, ref)
	if err != nil {
		return err
	}
	var errs []error
	for i, ep := range endpoints {
		err := fn(ep)
		if errors.Is(err, errNotMeant) {
			continue
		}
		if err = explain(err, ep); err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
		if i < len(endpoints)-1 {
			log.G(ctx).WithError(err).WithField("registry", ep.host).Warn("mirror failed, trying the next")
		}
		// The registry itself comes last and says most about what is wrong.
		errs = append([]error{err}, errs...)
	}
	if len(errs) == 0 {
		return nobodyMeant(ref)
	}
	return errors.Join(errs...)
}

// endpoints lists where a reference may be fetched from.
func (c *Client) endpoints(ctx context.Context, ref string) ([]endpoint, error) {
	s, err := c.ready(ctx)
	if err != nil {
		return nil, err
	}
	list, err := s.config.endpoints(ref)
	for i := range list {
		list[i].site = s.site(list[i])
	}
	return list, err
}

func nobodyMeant(ref string) error {
	return fmt.Errorf("no host in the hosts.toml for %s has the capability for this; give one of them \"pull\" and \"resolve\": %w", ref, errdefs.ErrFailedPrecondition)
}
