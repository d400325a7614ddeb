package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
)

// maxAuthorizers bounds the repositories whose tokens are remembered.
const maxAuthorizers = 256

// authorizer shows a registry what it wants to be shown for one repository. It asks for credentials only when the registry
// does, so that an anonymous pull needs no key broker.
type authorizer struct {
	credentials func(context.Context, string) (Credential, error)
	token       *http.Client
	repository  string

	mu    sync.Mutex
	inner docker.Authorizer // nil before the first challenge
	fixed string            // a header that is shown as it is
}

// authorizer returns that of an endpoint's repository; its tokens are kept between calls.
func (c *Client) authorizer(ep endpoint) *authorizer {
	type key struct {
		url     string
		special *Host
	}
	k := key{url: ep.scheme() + "://" + ep.host + "/" + ep.ref.Locator, special: ep.special}
	c.mu.Lock()
	defer c.mu.Unlock()
	if a, ok := c.auth[k]; ok {
		return a
	}
	if len(c.auth) >= maxAuthorizers {
		clear(c.auth)
	}
	token := *ep.site.token
	token.Transport = &tokenTransport{base: token.Transport, plain: ep.plainHTTP}
	a := &authorizer{credentials: c.config.Credentials, token: &token, repository: ep.host + "/" + ep.repository()}
	if ep.namespace == "" {
		// The name in the reference, not that of the machine behind it.
		a.repository = ep.ref.Locator
	}
	c.auth[k] = a
	return a
}

// authorize adds to a request what is known to be wanted.
func (a *authorizer) authorize(ctx context.Context, req *http.Request) error {
	a.mu.Lock()
	inner, fixed := a.inner, a.fixed
	a.mu.Unlock()
	switch {
	case fixed != "":
		req.Header.Set("Authorization", fixed)
	case inner != nil:
		return inner.Authorize(ctx, req)
	}
	return nil
}

// challenged takes an answer 401. An error means that there is no use in asking again.
func (a *authorizer) challenged(ctx context.Context, responses []*http.Response) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.inner == nil {
		var found Credential
		if a.credentials != nil {
			var err error
			if found, err = a.credentials(ctx, a.repository); err != nil {
				return &credentialError{repository: a.repository, cause: err}
			}
		}
		user, secret := found.User, found.Password
		if found.IdentityToken != "" {
			user, secret = "", found.IdentityToken // the form in which containerd's authorizer expects it
		}
		a.inner = docker.NewDockerAuthorizer(docker.WithAuthClient(a.token),
			docker.WithAuthCreds(func(string) (string, string, error) { return user, secret, nil }))
		if found.RegistryToken != "" {
			a.fixed = "Bearer " + found.RegistryToken
			return nil
		}
	}
	if a.fixed != "" {
		return fmt.Errorf("registry token was refused: %w", docker.ErrInvalidAuthorization)
	}
	return a.inner.AddResponses(ctx, responses)
}

// credentialError is a failure to get credentials, which is not the registry's.
type credentialError struct {
	repository string
	cause      error
}

func (e *credentialError) Error() string {
	return fmt.Sprintf("get registry credentials for %s: %v", e.repository, e.cause)
}

func (e *credentialError) Unwrap() error { return e.cause }

// tokenTransport bounds the answers of a registry's token service, and keeps passwords off open lines.
type tokenTransport struct {
	base http.RoundTripper
	// plain allows http, as for registries that are talked to in http themselves.
	plain bool
}

func (t *tokenTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" && !t.plain {
		return nil, &statusError{
			msg:   fmt.Sprintf("registry's token service %s speaks %.16s, and the registry itself https: no credentials are sent there", req.URL.Host, req.URL.Scheme),
			class: errdefs.ErrFailedPrecondition,
		}
	}
	resp, err := t.base.RoundTrip(req)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, 1<<20), resp.Body}
	}
	return resp, err
}

// explain gives an error of a request its class and says whose it is.
func explain(err error, ep endpoint) error {
	var (
		status     *statusError
		unexpected remoteerrors.ErrUnexpectedStatus
		credential *credentialError
	)
	switch {
	case err == nil:
		return nil
	case errors.As(err, &credential):
		return credential
	case errors.As(err, &status):
		return fmt.Errorf("%w: %w", status, status.class)
	case errors.Is(err, docker.ErrInvalidAuthorization), errors.Is(err, errUnauthorized),
		errors.As(err, &unexpected) && unexpected.StatusCode == http.StatusUnauthorized:
		return fmt.Errorf("registry %s wants credentials for %s (401 Unauthorized) and the guest has none that it takes; name them in image.authenticated_registry_credentials_uri of the initdata's cdh.toml: %w",
			ep.host, ep.ref.Locator, errdefs.ErrUnauthenticated)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), !errdefs.IsUnknown(errdefs.Resolve(err)):
		return err
	case errors.Is(err, errTruncated):
		return fmt.Errorf("registry %s: %w: %w", ep.host, err, errdefs.ErrUnavailable)
	}
	// Whatever else a registry does that no client can use: an address of an unknown kind, a broken encoding.
	return fmt.Errorf("registry %s: %w: %w", ep.host, err, errdefs.ErrFailedPrecondition)
}
