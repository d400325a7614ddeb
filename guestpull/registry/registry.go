// Package registry fetches image documents and layers from OCI registries, which it does not trust: every byte that it
// hands out was checked against the digest that was asked for, or is followed by an error instead of the end of file.
//
// It adds to containerd's client what a guest needs: registries from the measured configuration instead of files, a bound
// on every body, a time limit on silence, retries that respect Retry-After, resumption of broken layers, fail-over between
// mirrors, and errors that name the registry and the cure. It must never write a byte anywhere.
package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"

	// The digest algorithms that a reference may use register themselves.
	_ "crypto/sha256"
	_ "crypto/sha512"
)

const maxRedirects = 5

// Client fetches from registries. It is safe for concurrent use and keeps connections alive between calls.
type Client struct {
	config Config
	http   *http.Client
	// auth keeps the tokens of all registries.
	auth docker.Authorizer
}

// New returns a client. It connects to nothing.
func New(config Config) (*Client, error) {
	if err := config.validate(); err != nil {
		return nil, err
	}
	if config.IdleTimeout == 0 {
		config.IdleTimeout = defaultIdleTimeout
	}
	if config.Attempts == 0 {
		config.Attempts = defaultAttempts
	}
	roots, err := config.roots()
	if err != nil {
		return nil, err
	}
	base := newHTTPTransport(&config, roots)
	return &Client{
		config: config,
		http: &http.Client{
			Transport:     &transport{base: base, idle: config.IdleTimeout, attempts: config.Attempts},
			CheckRedirect: checkRedirect,
		},
		auth: docker.NewDockerAuthorizer(
			docker.WithAuthClient(&http.Client{Transport: &tokenTransport{base: base}, Timeout: config.IdleTimeout, CheckRedirect: checkRedirect}),
			docker.WithAuthCreds(config.Credentials)),
	}, nil
}

// checkRedirect lets a registry send us to its storage, but neither in circles nor from https to http.
func checkRedirect(req *http.Request, via []*http.Request) error {
	first := via[0].URL
	if len(via) > maxRedirects {
		return &statusError{msg: fmt.Sprintf("registry %s redirects more than %d times", first.Host, maxRedirects), class: errdefs.ErrFailedPrecondition}
	}
	if first.Scheme == "https" && req.URL.Scheme != "https" {
		return &statusError{msg: fmt.Sprintf("registry %s redirects from https to %.16s", first.Host, req.URL.Scheme), class: errdefs.ErrFailedPrecondition}
	}
	return nil
}

// tokenTransport bounds the answers of a registry's token service.
type tokenTransport struct{ base http.RoundTripper }

func (t *tokenTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := t.base.RoundTrip(req)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, 1<<20), resp.Body}
	}
	return resp, err
}

// Resolve asks which digest a reference with a tag stands for now. Where the answer may not be left to the registry, the
// caller must compare it with a digest from a measured or signed source.
func (c *Client) Resolve(ctx context.Context, ref string) (digest.Digest, error) {
	var found digest.Digest
	err := c.each(ctx, ref, func(ep endpoint) error {
		_, desc, err := c.resolver(ep).Resolve(mute(ctx), ep.ref.String())
		if err != nil {
			return err
		}
		found = desc.Digest
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("resolve image %s: %w", ref, err)
	}
	return found, nil
}

// Manifest returns an index or a manifest by its digest; ref says in which repository it is. The bytes match the digest.
// A document larger than limit is errdefs.ErrFailedPrecondition.
func (c *Client) Manifest(ctx context.Context, ref string, dgst digest.Digest, limit int64) ([]byte, error) {
	var raw []byte
	err := c.each(ctx, ref, func(ep endpoint) error {
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
	// The type only tells the client which path to ask; the size is not known yet, so its bound stands in for it.
	rc, err := c.open(ctx, ep, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: dgst, Size: limit + 1}, 0)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	var buf bytes.Buffer
	n, err := buf.ReadFrom(io.LimitReader(rc, limit+1))
	switch {
	case err != nil:
		return nil, err
	case n > limit:
		return nil, fmt.Errorf("registry %s sent a manifest larger than %d bytes: %w", ep.host, limit, errdefs.ErrFailedPrecondition)
	case dgst.Algorithm().FromBytes(buf.Bytes()) != dgst:
		return nil, wrongBytes(ep.host, dgst)
	}
	return buf.Bytes(), nil
}

func wrongBytes(host string, dgst digest.Digest) error {
	return fmt.Errorf("registry %s sent bytes that do not match digest %s: %w", host, dgst, errdefs.ErrFailedPrecondition)
}

// each calls fn for one endpoint after the other until one succeeds. The error is that of the last one, which is the
// registry itself; those of mirrors are joined to it.
func (c *Client) each(ctx context.Context, ref string, fn func(endpoint) error) error {
	endpoints, err := c.config.endpoints(ref)
	if err != nil {
		return err
	}
	var errs []error
	for i, ep := range endpoints {
		err := explain(fn(ep), ep)
		if err == nil {
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
	return errors.Join(errs...)
}

// open starts a transfer at an offset.
func (c *Client) open(ctx context.Context, ep endpoint, desc ocispec.Descriptor, offset int64) (io.ReadCloser, error) {
	ctx = mute(ctx)
	fetcher, err := c.resolver(ep).Fetcher(ctx, ep.ref.String())
	if err != nil {
		return nil, err
	}
	rc, err := fetcher.Fetch(ctx, desc)
	if err != nil {
		return nil, err
	}
	if offset == 0 {
		return rc, nil
	}
	seeker, ok := rc.(io.Seeker)
	if !ok {
		rc.Close()
		return nil, fmt.Errorf("resume at byte %d: %w", offset, errdefs.ErrNotImplemented)
	}
	if _, err := seeker.Seek(offset, io.SeekStart); err != nil {
		rc.Close()
		return nil, err
	}
	return rc, nil
}

// mute keeps containerd's client from logging: at debug level it prints URLs and headers, both of which may hold
// credentials. What goes wrong comes back as an error.
func mute(ctx context.Context) context.Context {
	silent := logrus.New()
	silent.SetOutput(io.Discard)
	return log.WithLogger(ctx, logrus.NewEntry(silent))
}

// resolver returns containerd's client for exactly one endpoint; fail-over between endpoints is ours.
func (c *Client) resolver(ep endpoint) remotes.Resolver {
	return docker.NewResolver(docker.ResolverOptions{
		Hosts: func(string) ([]docker.RegistryHost, error) {
			return []docker.RegistryHost{{
				Client:       c.http,
				Authorizer:   c.auth,
				Host:         ep.host,
				Scheme:       ep.scheme(),
				Path:         "/v2",
				Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve,
				Header:       http.Header{"User-Agent": {"coffer"}},
			}}, nil
		},
	})
}

// explain replaces what containerd's client wraps around an error by the error that our transport made, and gives a class
// to those that it makes itself.
func explain(err error, ep endpoint) error {
	var (
		status     *statusError
		unexpected remoteerrors.ErrUnexpectedStatus
	)
	switch {
	case err == nil:
		return nil
	case errors.As(err, &status):
		return fmt.Errorf("%w: %w", status, status.class)
	case errors.Is(err, docker.ErrInvalidAuthorization),
		errors.As(err, &unexpected) && unexpected.StatusCode == http.StatusUnauthorized:
		return fmt.Errorf("registry %s wants credentials for %s (401 Unauthorized) and the guest has none that it takes: %w", ep.host, ep.ref.Locator, errdefs.ErrUnauthenticated)
	}
	return err
}
