package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

const (
	// errorBodyLimit bounds what is read of an error answer.
	errorBodyLimit = 16 << 10
	// maxHeader bounds the headers of an answer in bytes.
	maxHeader = 64 << 10
	// maxRetryAfter bounds how long a registry may make us wait between two attempts.
	maxRetryAfter = 20 * time.Second
	firstDelay    = 250 * time.Millisecond
	// silentAttempts bounds the attempts at a registry that does not answer in time, each of which takes Config.IdleTimeout:
	// kubelet gives up waiting for a container after two minutes and would never hear the cause.
	silentAttempts = 2
)

// statusError is an answer that ends an attempt for good. It does not show the transport's own errors, whose texts hold
// whole addresses: those that registries redirect to carry signatures. explain brings its class back.
type statusError struct {
	msg   string
	class error
	code  int // the status, where there was an answer
}

func (e *statusError) Error() string { return e.msg }

// errStalled is the cause with which a silent connection is cut.
var errStalled = errors.New("registry went silent")

// newHTTPTransport returns the bottom of the stack: limits for connecting and for headers.
func newHTTPTransport(c *Config, roots *x509.CertPool) *http.Transport {
	return &http.Transport{
		Proxy:                  c.Proxy,
		DialContext:            dialer(c.IdleTimeout),
		TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    c.IdleTimeout,
		ResponseHeaderTimeout:  c.IdleTimeout,
		MaxResponseHeaderBytes: maxHeader,
		// A compressed transfer would make the size of a body something that the registry chooses.
		DisableCompression:  true,
		MaxIdleConnsPerHost: 8,
		IdleConnTimeout:     30 * time.Second,
		ForceAttemptHTTP2:   true,
	}
}

func dialer(limit time.Duration) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return (&net.Dialer{Timeout: limit, KeepAlive: 30 * time.Second}).DialContext
}

// transport adds to a plain one what a guest needs of every registry request: bounded retries, a time limit on silence,
// the list of document types, and errors that tell an admin which registry did what.
type transport struct {
	base     http.RoundTripper
	idle     time.Duration
	rate     int64
	attempts int
}

// RoundTrip sends a request. Only requests without a body pass here, so each can be repeated.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.Header.Set("Accept-Encoding", "identity")
	for attempt := 1; ; attempt++ {
		resp, err := t.once(req)
		if ctxErr := req.Context().Err(); ctxErr != nil {
			closeBody(resp)
			return nil, ctxErr
		}
		var (
			wait  time.Duration
			cause string
		)
		switch {
		case err != nil && (!retryable(err) || attempt >= t.attempts || (silent(err) && attempt >= silentAttempts)):
			return nil, connectionError(req, err, attempt)
		case err != nil:
			wait, cause = backoff(attempt), err.Error()
		case busy(resp.StatusCode) && attempt < t.attempts:
			wait, cause = retryAfter(resp, attempt), resp.Status
			closeBody(resp)
		default:
			return t.accept(req, resp, attempt)
		}
		if err := pause(req.Context(), wait, req.URL.Host, cause); err != nil {
			return nil, err
		}
	}
}

func (t *transport) once(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	resp, err := t.base.RoundTrip(req.WithContext(ctx))
	if err != nil {
		cancel(nil)
		return nil, err
	}
	resp.Body = newIdleBody(ctx, cancel, resp.Body, req.URL.Host, t.idle, t.rate)
	return resp, nil
}

// accept turns an answer that is no use into an error. Two kinds of refusal are left to the caller, who may know better:
// 401, which may carry a challenge, and 405 for HEAD.
func (t *transport) accept(req *http.Request, resp *http.Response, attempts int) (*http.Response, error) {
	code := resp.StatusCode
	if code == http.StatusUnauthorized || (code == http.StatusMethodNotAllowed && req.Method == http.MethodHead) {
		return resp, nil
	}
	if code >= http.StatusBadRequest {
		defer closeBody(resp)
		return nil, answerError(req, resp, attempts)
	}
	if enc := resp.Header.Get("Content-Encoding"); enc != "" && enc != "identity" {
		closeBody(resp)
		return nil, &statusError{
			msg:   fmt.Sprintf("registry %s answered in encoding %.32q, which was not asked for", req.URL.Host, enc),
			class: errdefs.ErrFailedPrecondition,
		}
	}
	return resp, nil
}

func busy(code int) bool {
	switch code {
	case http.StatusTooManyRequests, http.StatusRequestTimeout, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// retryable is false for faults that another attempt cannot cure.
func retryable(err error) bool {
	var (
		cert   *tls.CertificateVerificationError
		record tls.RecordHeaderError
		dns    *net.DNSError
	)
	switch {
	case errors.As(err, &cert), errors.As(err, &record):
		return false
	case errors.As(err, &dns):
		return !dns.IsNotFound
	case strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"), tooMuchHeader(err):
		return false
	}
	return true
}

// tooMuchHeader knows the errors of the HTTP library for an answer with more than maxHeader; they have no type.
func tooMuchHeader(err error) bool {
	text := err.Error()
	return strings.Contains(text, "server response headers exceeded") || strings.Contains(text, "response header list larger than")
}

// silent tells a registry that lets us wait from one that refuses us.
func silent(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// connectionError describes a request that got no answer.
func connectionError(req *http.Request, err error, attempts int) error {
	var (
		cert   *tls.CertificateVerificationError
		record tls.RecordHeaderError
	)
	host := req.URL.Host
	switch {
	case errors.As(err, &cert):
		return &statusError{
			msg: fmt.Sprintf("registry %s: its certificate is not trusted (%v); add its authority to image.extra_root_certificates of the initdata's cdh.toml",
				host, cert.Err),
			class: errdefs.ErrFailedPrecondition,
		}
	case errors.As(err, &record), strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return &statusError{
			msg:   fmt.Sprintf("registry %s speaks http, not https; mark it insecure in image.registry_config of the initdata's cdh.toml if that is meant", host),
			class: errdefs.ErrFailedPrecondition,
		}
	case tooMuchHeader(err):
		return &statusError{
			msg:   fmt.Sprintf("registry %s answered with more than %d bytes of headers; check what answers at this address", host, maxHeader),
			class: errdefs.ErrFailedPrecondition,
		}
	}
	return &statusError{
		msg:   fmt.Sprintf("registry %s cannot be reached (%d attempts): %v; check that it runs and that the pod's network reaches it", host, attempts, err),
		class: errdefs.ErrUnavailable,
	}
}

// answerError describes an answer with an error status.
func answerError(req *http.Request, resp *http.Response, attempts int) error {
	e := &statusError{class: errdefs.ErrFailedPrecondition, code: resp.StatusCode}
	advice := ""
	switch code := resp.StatusCode; {
	case code == http.StatusNotFound:
		e.class = errdefs.ErrNotFound
	case code == http.StatusRequestedRangeNotSatisfiable:
		e.class, advice = errdefs.ErrFailedPrecondition, "; what it holds is shorter than the image's manifest says"
	case code == http.StatusForbidden:
		e.class, advice = errdefs.ErrPermissionDenied, "; the registry's credentials do not allow this pull"
	case busy(code):
		e.class = errdefs.ErrUnavailable
		if attempts > 1 {
			advice = fmt.Sprintf(" (%d attempts)", attempts)
		}
	}
	e.msg = fmt.Sprintf("registry %s answered %d %s to %s %s%s%s",
		req.URL.Host, resp.StatusCode, http.StatusText(resp.StatusCode), req.Method, req.URL.Path, reason(resp.Body), advice)
	return e
}

// reason takes the registry's own words from an error answer, cut short and without control characters.
func reason(body io.Reader) string {
	raw, err := io.ReadAll(io.LimitReader(body, errorBodyLimit))
	if err != nil {
		return ""
	}
	var answer struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
	}
	if json.Unmarshal(raw, &answer) != nil || len(answer.Errors) == 0 {
		return ""
	}
	return fmt.Sprintf(": %.64q %.160q", answer.Errors[0].Code, answer.Errors[0].Message)
}

func backoff(attempt int) time.Duration {
	d := firstDelay << (attempt - 1)
	return d/2 + rand.N(d) //nolint:gosec // spreads load, protects nothing
}

func retryAfter(resp *http.Response, attempt int) time.Duration {
	v := resp.Header.Get("Retry-After")
	if sec, err := strconv.ParseUint(v, 10, 32); err == nil {
		return min(time.Duration(sec)*time.Second, maxRetryAfter)
	}
	if at, err := http.ParseTime(v); err == nil {
		return min(max(time.Until(at), 0), maxRetryAfter)
	}
	return backoff(attempt)
}

// pause waits between two attempts at a host; it is the only place of the package that does. When the time that is left
// for everything would be over before, it says at once what the last attempt ended with.
func pause(ctx context.Context, d time.Duration, host, cause string) error {
	end, limited := ctx.Deadline()
	late := fmt.Errorf("no time is left for another attempt at registry %s, the last one ended with: %s: %w", host, cause, context.DeadlineExceeded)
	if limited && time.Until(end) < d {
		return late
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return late
		}
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

func closeBody(resp *http.Response) {
	if resp != nil {
		resp.Body.Close()
	}
}
