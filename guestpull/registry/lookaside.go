package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/containerd/errdefs"
)

// Get returns what is at an address that a measured document names, with the proxy, the authorities and the limits of
// registries, but without credentials. Nothing vouches for the bytes. More than limit are FailedPrecondition; NotFound:
// nothing is there.
func (c *Client) Get(ctx context.Context, address string, limit int64) ([]byte, error) {
	s, err := c.ready(ctx)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(address)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil {
		return nil, fmt.Errorf("fetch by http: the address is none that is allowed: %w", errdefs.ErrInvalidArgument)
	}
	for attempt := 1; ; attempt++ {
		raw, err := c.getOnce(ctx, s.sites[nil], u, limit)
		if err == nil {
			return raw, nil
		}
		if !errors.Is(err, errTruncated) || attempt >= c.config.Attempts {
			return nil, explain(err, endpoint{host: u.Host})
		}
		if err := pause(ctx, backoff(attempt), u.Host, err.Error()); err != nil {
			return nil, err
		}
	}
}

func (c *Client) getOnce(ctx context.Context, at *site, u *url.URL, limit int64) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), http.NoBody)
	if err != nil {
		return nil, fmt.Errorf("make request to %s: %w", u.Host, errdefs.ErrInvalidArgument)
	}
	req.Header = endpoint{}.header()
	resp, err := at.http.Do(req)
	if err != nil {
		return nil, unwrapURL(err)
	}
	defer closeBody(resp)
	if resp.StatusCode == http.StatusUnauthorized {
		return nil, &statusError{msg: fmt.Sprintf("%s wants credentials for %s (401 Unauthorized), which are not given here", u.Host, u.Path), class: errdefs.ErrUnauthenticated}
	}
	if resp.StatusCode != http.StatusOK {
		return nil, &statusError{msg: fmt.Sprintf("%s answered %d to GET %s, which has no meaning here", u.Host, resp.StatusCode, u.Path), class: errdefs.ErrFailedPrecondition}
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	switch {
	case err != nil:
		return nil, err
	case int64(len(raw)) > limit:
		return nil, &statusError{msg: fmt.Sprintf("%s sent more than %d bytes for %s", u.Host, limit, u.Path), class: errdefs.ErrFailedPrecondition}
	}
	return raw, nil
}
