package kbs

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/lazyregexp"
)

// maxURI bounds the text of a resource URI in bytes.
const maxURI = 1024

var (
	// A segment becomes a path element on the broker's disk and of a URL, so it may not begin with a dot and needs no escaping.
	segmentPattern = lazyregexp.New(`^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}$`)
	addressPattern = lazyregexp.New(`^[A-Za-z0-9][A-Za-z0-9.-]{0,252}(:[0-9]{1,5})?$`)
)

// ResourceURI names one resource of a broker: kbs://[address]/repository/type/tag.
type ResourceURI struct {
	// Address is the host[:port] in the text, usually empty. It is only a hint of whoever wrote the URI: a guest asks the broker of its
	// measured configuration and no other.
	Address string
	// Repository, Type and Tag match [A-Za-z0-9_-][A-Za-z0-9_.-]*, at most 128 characters each.
	Repository, Type, Tag string
}

// ParseResourceURI parses the text form. Anything but the three plain segments (other schemes, plugins, queries, escapes) is
// InvalidArgument.
func ParseResourceURI(text string) (ResourceURI, error) {
	bad := func(reason string) (ResourceURI, error) {
		return ResourceURI{}, fmt.Errorf("resource URI %q: %s, want kbs:///repository/type/tag: %w", sanitize(text, 128), reason, errdefs.ErrInvalidArgument)
	}
	if len(text) > maxURI {
		return bad("too long")
	}
	if strings.HasPrefix(text, "kbs+") {
		return bad("broker plugins are not supported")
	}
	rest, ok := strings.CutPrefix(text, "kbs://")
	if !ok {
		return bad("scheme is not kbs")
	}
	address, path, ok := strings.Cut(rest, "/")
	if !ok {
		return bad("no path")
	}
	if address != "" && !addressPattern.MatchString(address) {
		return bad("malformed address")
	}
	uri, err := ParseResourcePath(path)
	if err != nil {
		return bad("malformed path")
	}
	uri.Address = address
	return uri, nil
}

// ParseResourcePath parses repository/type/tag, the form that stands in request paths.
func ParseResourcePath(path string) (ResourceURI, error) {
	segments := strings.Split(path, "/")
	if len(path) > maxURI || len(segments) != 3 {
		return ResourceURI{}, fmt.Errorf("resource path %q is not repository/type/tag: %w", sanitize(path, 128), errdefs.ErrInvalidArgument)
	}
	uri := ResourceURI{Repository: segments[0], Type: segments[1], Tag: segments[2]}
	if err := uri.Validate(); err != nil {
		return ResourceURI{}, err
	}
	return uri, nil
}

// Validate returns InvalidArgument where a field could not come from ParseResourceURI.
func (u ResourceURI) Validate() error {
	for _, segment := range []string{u.Repository, u.Type, u.Tag} {
		if !segmentPattern.MatchString(segment) {
			return fmt.Errorf("resource name %q: want letters, digits, '_', '-' and '.', not beginning with '.': %w", sanitize(segment, 128), errdefs.ErrInvalidArgument)
		}
	}
	if u.Address != "" && !addressPattern.MatchString(u.Address) {
		return fmt.Errorf("resource address %q: want host[:port]: %w", sanitize(u.Address, 128), errdefs.ErrInvalidArgument)
	}
	return nil
}

// Path returns repository/type/tag.
func (u ResourceURI) Path() string { return u.Repository + "/" + u.Type + "/" + u.Tag }

// String returns the text form that ParseResourceURI reads.
func (u ResourceURI) String() string { return "kbs://" + u.Address + "/" + u.Path() }
