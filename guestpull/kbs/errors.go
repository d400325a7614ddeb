package kbs

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"

	proto "github.com/coffer-project/coffer/proto/kbs"
)

// Error is what went wrong between the guest and its broker, in words for the node's admin. It matches, by errors.Is, one class of
// errdefs and the cause where there is one:
//
//	Unavailable         the broker cannot be reached or is broken for now
//	PermissionDenied    the broker refuses the guest or the resource
//	NotFound            the broker has no such resource
//	Internal            the broker's answers make no sense
//
// It never holds a key, a token or a session.
type Error struct {
	class error
	cause error
	text  string
}

// Error implements error.
func (e *Error) Error() string { return e.text }

// Unwrap gives the class and the cause to errors.Is and errors.As.
func (e *Error) Unwrap() []error {
	if e.cause == nil {
		return []error{e.class}
	}
	return []error{e.class, e.cause}
}

func (c *Client) unreachable(step string, attempts int, cause error) error {
	return &Error{class: errdefs.ErrUnavailable, cause: cause, text: fmt.Sprintf(
		"key broker %s: %s failed after %d attempts: %s; check that the broker runs and that the guest's network reaches it", c.name, step, attempts, causeText(cause))}
}

func (c *Client) untrusted(cause error) error {
	return &Error{class: errdefs.ErrUnavailable, cause: cause, text: fmt.Sprintf(
		"key broker %s: its TLS certificate is not trusted: %s; check kbs_cert in the initdata and the broker's certificate", c.name, causeText(cause))}
}

func (c *Client) refusedGuest(step string, a *answer) error {
	return &Error{class: errdefs.ErrPermissionDenied, text: fmt.Sprintf(
		"key broker %s refused %s of this guest (tee %s): %s; check that the broker accepts this tee and knows the guest's measurements", c.name, step, c.tee, a.reason())}
}

func (c *Client) refusedResource(uri proto.ResourceURI, a *answer) error {
	switch {
	case a.status == 404:
		return &Error{class: errdefs.ErrNotFound, text: fmt.Sprintf(
			"key broker %s has no resource %s: %s; put it there (cofferctl kbs resource put), or check the name where it comes from: the image's key id, the sealed secret, or the initdata", c.name, uri, a.reason())}
	case a.problem.Kind() == proto.KindPolicyDeny || a.status == 403:
		return &Error{class: errdefs.ErrPermissionDenied, text: fmt.Sprintf(
			"key broker %s refused resource %s: policy denied: %s; check the broker's resource policy", c.name, uri, a.reason())}
	default:
		return &Error{class: errdefs.ErrPermissionDenied, text: fmt.Sprintf(
			"key broker %s refused resource %s: %s; see the broker's audit log", c.name, uri, a.reason())}
	}
}

func (c *Client) garbage(step, what string) error {
	return &Error{class: errdefs.ErrInternal, text: fmt.Sprintf(
		"key broker %s gave a senseless answer to %s: %s; check that the URL belongs to a key broker of protocol %s", c.name, step, what, proto.Version)}
}

// reason tells what the broker said, or the bare status where it said nothing that we understand.
func (a *answer) reason() string {
	parts := []string{fmt.Sprintf("status %d", a.status)}
	if kind := a.problem.Kind(); kind != "" {
		parts = append(parts, kind)
	}
	if a.problem.Detail != "" {
		parts = append(parts, fmt.Sprintf("%q", a.problem.Detail))
	}
	return strings.Join(parts, " ")
}
