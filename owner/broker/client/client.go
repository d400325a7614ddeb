// Package client manages a broker over its admin API. It works with coffer-kbs and, except for what says otherwise, with Trustee.
package client

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/owner/broker/admin"
	"github.com/coffer-project/coffer/proto/kbs"
)

// tokenLifetime is how long each request's admin token is good for: it only has to survive the way and a skewed clock.
const tokenLifetime = 5 * time.Minute

// requestTimeout bounds one request.
const requestTimeout = 30 * time.Second

// Options say which broker and with which key.
type Options struct {
	// URL is the broker's base URL.
	URL string
	// CACertPEM, when not empty, holds the only CAs that may sign the broker's certificate. Empty means the system's.
	CACertPEM []byte
	// Key signs the requests. Required.
	Key ed25519.PrivateKey
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Client sends admin requests. Its methods may be called concurrently.
type Client struct {
	base string
	http *http.Client
	key  ed25519.PrivateKey
	now  func() time.Time
}

// New returns a client; it does not connect. Faults in the options are InvalidArgument.
func New(o Options) (*Client, error) {
	u, err := url.Parse(o.URL)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("key broker URL is not a plain http://host or https://host: %w", errdefs.ErrInvalidArgument)
	}
	if len(o.Key) != ed25519.PrivateKeySize {
		return nil, fmt.Errorf("admin key is missing: %w", errdefs.ErrInvalidArgument)
	}
	tlsConfig := &tls.Config{MinVersion: tls.VersionTLS12}
	if len(o.CACertPEM) > 0 {
		tlsConfig.RootCAs = x509.NewCertPool()
		if u.Scheme != "https" || !tlsConfig.RootCAs.AppendCertsFromPEM(o.CACertPEM) {
			return nil, fmt.Errorf("key broker CA is not PEM, or the URL is not https: %w", errdefs.ErrInvalidArgument)
		}
	}
	c := &Client{base: strings.TrimSuffix(u.String(), "/"), key: o.Key, now: o.Now}
	if c.now == nil {
		c.now = time.Now
	}
	c.http = &http.Client{
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, TLSClientConfig: tlsConfig, ForceAttemptHTTP2: true,
			TLSHandshakeTimeout: 10 * time.Second, IdleConnTimeout: 10 * time.Second,
		},
		// A redirect would carry the resource to somewhere else.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c, nil
}

// Put creates or replaces a resource of 1 to kbs.MaxResource bytes.
func (c *Client) Put(ctx context.Context, uri kbs.ResourceURI, data []byte) error {
	if len(data) == 0 || len(data) > kbs.MaxResource {
		return fmt.Errorf("resource %s has %d bytes, a key broker takes 1 to %d: %w", uri, len(data), kbs.MaxResource, errdefs.ErrInvalidArgument)
	}
	_, err := c.resource(ctx, http.MethodPost, uri, data)
	return err
}

// Delete removes a resource. One that does not exist is NotFound.
func (c *Client) Delete(ctx context.Context, uri kbs.ResourceURI) error {
	_, err := c.resource(ctx, http.MethodDelete, uri, nil)
	return err
}

// List returns the names of all resources (coffer-kbs only). Resources themselves cannot be read over the admin API, only by attested guests.
func (c *Client) List(ctx context.Context) ([]kbs.ResourceURI, error) {
	body, err := c.do(ctx, http.MethodGet, kbs.PathResource, nil)
	if err != nil {
		return nil, fmt.Errorf("list resources: %w", err)
	}
	var list kbs.ResourceList
	if err := kbs.Decode(body, kbs.MaxList, &list); err != nil {
		return nil, fmt.Errorf("list resources: key broker %s: %w", c.base, err)
	}
	uris := make([]kbs.ResourceURI, 0, len(list.Resources))
	for _, name := range list.Resources {
		uri, err := kbs.ParseResourceURI(name)
		if err != nil {
			return nil, fmt.Errorf("list resources: key broker %s: %w", c.base, err)
		}
		uris = append(uris, uri)
	}
	return uris, nil
}

func (c *Client) resource(ctx context.Context, method string, uri kbs.ResourceURI, data []byte) ([]byte, error) {
	if err := uri.Validate(); err != nil {
		return nil, err
	}
	verb := map[string]string{http.MethodPost: "put", http.MethodDelete: "delete"}[method]
	body, err := c.do(ctx, method, kbs.PathResource+"/"+uri.Path(), data)
	if err != nil {
		return nil, fmt.Errorf("%s resource %s: %w", verb, uri, err)
	}
	return body, nil
}

func (c *Client) do(ctx context.Context, method, path string, data []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	token, err := admin.Sign(c.key, c.now(), tokenLifetime)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("build request: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	if data != nil {
		req.Header.Set("Content-Type", "application/octet-stream")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if urlErr, ok := errors.AsType[*url.Error](err); ok {
			err = urlErr.Err
		}
		if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
			return nil, fmt.Errorf("key broker %s is not trusted: %w; name the CA of its certificate (--ca): %w", c.base, err, errdefs.ErrUnavailable)
		}
		return nil, fmt.Errorf("key broker %s is unreachable: %w: %w", c.base, err, errdefs.ErrUnavailable)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, kbs.MaxList+1))
	if err != nil {
		return nil, fmt.Errorf("key broker %s: read answer: %w: %w", c.base, err, errdefs.ErrUnavailable)
	}
	if resp.StatusCode == http.StatusOK && len(body) <= kbs.MaxList {
		return body, nil
	}
	return nil, c.refused(resp.StatusCode, kbs.ParseProblem(body))
}

func (c *Client) refused(status int, p kbs.Problem) error {
	var class error = errdefs.ErrInternal
	switch status {
	case http.StatusNotFound:
		class = errdefs.ErrNotFound
	case http.StatusUnauthorized, http.StatusForbidden:
		class = errdefs.ErrPermissionDenied
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge:
		class = errdefs.ErrInvalidArgument
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		class = errdefs.ErrUnavailable
	}
	detail := p.Detail
	if detail == "" {
		detail = "no reason given; is this a key broker?"
	}
	return fmt.Errorf("key broker %s answered with status %d: %s: %w", c.base, status, detail, class)
}
