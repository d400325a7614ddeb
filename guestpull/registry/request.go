package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
)

// maxChallenges bounds how often a request is sent again because the registry asks who we are.
const maxChallenges = 3

// errUnauthorized is an answer 401 that nothing can be done about.
var errUnauthorized = errors.New("401 Unauthorized")

// ask sends a request to an endpoint, and again with credentials where it wants them. kind is manifests or blobs. The
// answer has status 200 or 206, or 405 where method is HEAD.
func (c *Client) ask(ctx context.Context, ep endpoint, method, kind, object string, header http.Header) (*http.Response, error) {
	ctx = mute(ctx)
	ctx, err := docker.ContextWithRepositoryScope(ctx, ep.ref, false)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	auth := c.authorizer(ep)
	var refused []*http.Response
	for {
		req, err := http.NewRequestWithContext(ctx, method, ep.url(kind, object), http.NoBody)
		if err != nil {
			return nil, fmt.Errorf("make request to registry %s: %w", ep.host, errdefs.ErrInvalidArgument)
		}
		req.Header = ep.header()
		maps.Copy(req.Header, header)
		if err := auth.authorize(ctx, req); err != nil {
			return nil, unwrapURL(err)
		}
		resp, err := ep.site.http.Do(req)
		switch {
		case err != nil:
			return nil, unwrapURL(err)
		case resp.StatusCode != http.StatusUnauthorized:
			return c.usable(ep, resp)
		}
		closeBody(resp)
		refused = append(refused, resp)
		if len(refused) > maxChallenges {
			return nil, errUnauthorized
		}
		if err := auth.challenged(ctx, refused); err != nil {
			var credential *credentialError
			if ctx.Err() != nil || errors.As(err, &credential) {
				return nil, err
			}
			return nil, fmt.Errorf("%w: %w", errUnauthorized, unwrapURL(err))
		}
	}
}

// usable lets through what a caller can make sense of.
func (c *Client) usable(ep endpoint, resp *http.Response) (*http.Response, error) {
	switch resp.StatusCode {
	case http.StatusOK, http.StatusPartialContent:
		return resp, nil
	case http.StatusMethodNotAllowed:
		if resp.Request.Method == http.MethodHead {
			return resp, nil
		}
	}
	closeBody(resp)
	return nil, &statusError{msg: fmt.Sprintf("registry %s answered %d, which has no meaning here", ep.host, resp.StatusCode), class: errdefs.ErrFailedPrecondition}
}

// unwrapURL takes the address off an error of the HTTP client: one that a registry has redirected to carries signatures.
func unwrapURL(err error) error {
	if with, ok := errors.AsType[*url.Error](err); ok {
		return with.Err
	}
	return err
}

// mute keeps containerd's client from logging: at debug level it prints URLs and headers, both of which may hold
// credentials. What goes wrong comes back as an error.
func mute(ctx context.Context) context.Context {
	silent := logrus.New()
	silent.SetOutput(io.Discard)
	return log.WithLogger(ctx, logrus.NewEntry(silent))
}
