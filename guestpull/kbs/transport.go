package kbs

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/containerd/errdefs"

	proto "github.com/coffer-project/coffer/proto/kbs"
)

// maxAttempts bounds how often a handshake, or the request for one key, is tried while the broker cannot be reached or is broken;
// maxSilent bounds it while the broker does not answer in time. An answer takes up to half a minute then, and kubelet gives up waiting
// for a container after two: it would never hear the cause.
const (
	maxAttempts = 5
	maxSilent   = 2
)

// maxBackoff bounds the pause between two attempts.
const maxBackoff = 3 * time.Second

// answer is one HTTP answer, read completely and within its limit.
type answer struct {
	status  int
	body    []byte
	cookie  string
	problem proto.Problem // of an answer that is not a success
}

var errOversize = errors.New("answer is larger than allowed")

func newHTTPClient(o Options, base *url.URL) (*http.Client, error) {
	client := &http.Client{}
	switch {
	case o.HTTPClient != nil && len(o.CACertPEM) > 0:
		return nil, fmt.Errorf("key broker client takes either an HTTP client or a CA: %w", errdefs.ErrInvalidArgument)
	case o.HTTPClient != nil:
		*client = *o.HTTPClient
	default:
		transport, err := newTransport(o.CACertPEM, base)
		if err != nil {
			return nil, err
		}
		client.Transport = transport
	}
	// A redirect would send evidence and session to a host that the measured document does not name.
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	client.Jar = nil
	return client, nil
}

func newTransport(caPEM []byte, base *url.URL) (*http.Transport, error) {
	tlsConfig := &tls.Config{MinVersion: tls.VersionTLS12}
	if len(caPEM) > 0 {
		if base.Scheme != "https" {
			return nil, fmt.Errorf("a CA is given for key broker %s, but its URL is plain http, which no CA protects: %w", base.Host, errdefs.ErrInvalidArgument)
		}
		tlsConfig.RootCAs = x509.NewCertPool()
		if !tlsConfig.RootCAs.AppendCertsFromPEM(caPEM) {
			return nil, fmt.Errorf("CA for key broker %s holds no PEM certificate: %w", base.Host, errdefs.ErrInvalidArgument)
		}
	}
	return &http.Transport{
		TLSClientConfig:        tlsConfig,
		ForceAttemptHTTP2:      true,
		TLSHandshakeTimeout:    10 * time.Second,
		ResponseHeaderTimeout:  30 * time.Second,
		IdleConnTimeout:        30 * time.Second,
		MaxIdleConns:           2,
		MaxResponseHeaderBytes: 64 << 10,
	}, nil
}

// transient is a fault that may pass: the broker cannot be reached, does not answer in time, or says that it is broken or busy.
type transient struct {
	step  string
	cause error
}

func (t *transient) Error() string { return t.step + ": " + causeText(t.cause) }
func (t *transient) Unwrap() error { return t.cause }

// retry runs call again after a transient error, up to maxAttempts times with growing pauses. Everything else is final.
func (c *Client) retry(ctx context.Context, call func(ctx context.Context) error) error {
	pause := c.backoff
	for attempt := 1; ; attempt++ {
		err := call(ctx)
		fault, ok := errors.AsType[*transient](err)
		if !ok {
			return err
		}
		if attempt == maxAttempts || (attempt >= maxSilent && isTimeout(fault)) {
			return c.unreachable(fault.step, attempt, fault.cause)
		}
		if err := wait(ctx, pause); err != nil {
			return fmt.Errorf("%s at key broker %s: last answer: %s: %w", fault.step, c.name, causeText(fault.cause), err)
		}
		pause = min(2*pause, maxBackoff)
	}
}

// exchange sends one request and reads the answer, at most limit bytes. Faults that may pass are of type *transient.
func (c *Client) exchange(ctx context.Context, step string, limit int, build func(ctx context.Context) (*http.Request, error)) (*answer, error) {
	attemptCtx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	req, err := build(attemptCtx)
	if err != nil {
		return nil, err
	}
	a, err := c.send(req, limit)
	switch {
	case err == nil && a.status < 500 && a.status != http.StatusTooManyRequests:
		return a, nil
	case err == nil:
		return nil, &transient{step: step, cause: errors.New(a.reason())}
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s at key broker %s: %w", step, c.name, ctx.Err())
	case errors.Is(err, errOversize):
		return nil, c.garbage(step, fmt.Sprintf("more than %d bytes", limit))
	case isCertificate(err):
		return nil, c.untrusted(err)
	default:
		return nil, &transient{step: step, cause: err}
	}
}

func (c *Client) send(req *http.Request, limit int) (*answer, error) {
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	a := &answer{status: resp.StatusCode}
	if a.status != http.StatusOK {
		limit = proto.MaxProblem
	}
	a.body, err = io.ReadAll(io.LimitReader(resp.Body, int64(limit)+1))
	if err != nil {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	if a.status != http.StatusOK {
		a.problem = proto.ParseProblem(a.body) // one that is too long counts as none
	} else if len(a.body) > limit {
		return nil, errOversize
	}
	for _, cookie := range resp.Cookies() {
		if cookie.Name == proto.SessionCookie {
			a.cookie = cookie.Value
		}
	}
	return a, nil
}

func (c *Client) request(ctx context.Context, method, path, session string, body []byte) (*http.Request, error) {
	var reader io.Reader
	if body != nil {
		reader = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, reader)
	if err != nil {
		return nil, fmt.Errorf("build request: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("Accept", "application/json")
	if session != "" {
		req.AddCookie(&http.Cookie{Name: proto.SessionCookie, Value: session})
	}
	return req, nil
}

// wait pauses for d or until ctx ends.
func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// isCertificate tells a broker with a wrong certificate, which waiting does not cure, from one that is not there.
func isCertificate(err error) bool {
	_, ok := errors.AsType[*tls.CertificateVerificationError](err)
	return ok
}

// isTimeout tells silence from refusals and broken connections.
func isTimeout(err error) bool {
	timeout, ok := errors.AsType[net.Error](err)
	return ok && timeout.Timeout()
}

// causeText drops the method and URL that net/http puts before its errors: our messages name the broker already.
func causeText(err error) string {
	if urlErr, ok := errors.AsType[*url.Error](err); ok {
		err = urlErr.Err
	}
	if err == nil {
		return "no answer"
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return "no answer in time"
	}
	return err.Error()
}
