package registry

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/pkg/reference"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/coffer-project/coffer/proto/lazyregexp"
)

// Config says how registries are reached. The zero value reaches every registry by https with the system's roots.
type Config struct {
	// Registries says which references are fetched from where; the longest matching prefix wins.
	Registries []Registry
	// ExtraRoots are PEM certificates of authorities that are trusted beside the system's.
	ExtraRoots []byte
	// IdleTimeout is how long a registry may stay silent, while it connects, answers or sends a body. 0 means 30 s.
	IdleTimeout time.Duration
	// Attempts is how often a request is tried when the registry cannot be reached or answers with 429 or 5xx. 0 means 4.
	Attempts int
	// Credentials returns the user and password of a registry host, two empty strings where there are none. May be nil.
	Credentials func(host string) (user, password string, err error)
	// Proxy chooses a proxy for a request. nil means none.
	Proxy func(*http.Request) (*url.URL, error)
}

// Registry is one entry of a containers-registries.conf.
type Registry struct {
	// Prefix selects references: a host, a host with a repository path, or "*.domain" for all hosts below a domain.
	Prefix string
	// Location replaces Prefix in the reference. Empty means that the reference is used as it is.
	Location string
	// PlainHTTP asks for http instead of https.
	PlainHTTP bool
	// Blocked refuses every reference with this prefix.
	Blocked bool
	// Mirrors are tried in order before Location.
	Mirrors []Mirror
}

// Mirror is another place that holds the content of a registry.
type Mirror struct {
	Location  string
	PlainHTTP bool
}

const (
	defaultIdleTimeout = 30 * time.Second
	defaultAttempts    = 4
)

// validate reports all faults at once.
func (c *Config) validate() error {
	var errs []error
	for i, r := range c.Registries {
		if r.Prefix == "" {
			errs = append(errs, fmt.Errorf("registry %d has no prefix", i))
		}
		for j, m := range r.Mirrors {
			if m.Location == "" {
				errs = append(errs, fmt.Errorf("registry %q: mirror %d has no location", r.Prefix, j))
			}
		}
		if strings.HasPrefix(r.Prefix, "*.") && r.Location != "" {
			errs = append(errs, fmt.Errorf("registry %q: a wildcard prefix cannot have a location", r.Prefix))
		}
	}
	if c.IdleTimeout < 0 || c.Attempts < 0 {
		errs = append(errs, errors.New("idle timeout and attempts must not be negative"))
	}
	if len(errs) > 0 {
		return fmt.Errorf("registry configuration: %w: %w", errors.Join(errs...), errdefs.ErrInvalidArgument)
	}
	return nil
}

// roots are the system's authorities and the extra ones.
func (c *Config) roots() (*x509.CertPool, error) {
	pool, err := x509.SystemCertPool()
	if err != nil {
		// A guest image may hold no certificates at all; then only the extra ones count.
		pool = x509.NewCertPool()
	}
	if len(c.ExtraRoots) > 0 && !pool.AppendCertsFromPEM(c.ExtraRoots) {
		return nil, fmt.Errorf("extra root certificates hold no PEM certificate: %w", errdefs.ErrInvalidArgument)
	}
	return pool, nil
}

// endpoint is one place to fetch a reference from.
type endpoint struct {
	// ref is the reference as this endpoint knows it.
	ref       reference.Spec
	host      string
	plainHTTP bool
}

func (e endpoint) scheme() string {
	if e.plainHTTP {
		return "http"
	}
	return "https"
}

// endpoints lists where a reference may be fetched from, mirrors first.
func (c *Config) endpoints(ref string) ([]endpoint, error) {
	spec, err := parseReference(ref)
	if err != nil {
		return nil, err
	}
	r, found := c.match(spec.Locator)
	if !found {
		return []endpoint{newEndpoint(spec, false)}, nil
	}
	if r.Blocked {
		return nil, fmt.Errorf("registry %q is blocked by the configuration: %w", r.Prefix, errdefs.ErrPermissionDenied)
	}
	var list []endpoint
	for _, m := range r.Mirrors {
		list = append(list, newEndpoint(relocate(spec, r.Prefix, m.Location), m.PlainHTTP))
	}
	return append(list, newEndpoint(relocate(spec, r.Prefix, r.Location), r.PlainHTTP)), nil
}

// The parts of a reference as the distribution protocol defines them; they become paths of requests.
var (
	hostPattern = lazyregexp.New(`^([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?$`)
	repoPattern = lazyregexp.New(`^[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*$`)
	tagPattern  = lazyregexp.New(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)
)

// parseReference reads a full reference: host/repository:tag, host/repository@digest, or both tag and digest.
func parseReference(ref string) (reference.Spec, error) {
	const limit = 1024
	if len(ref) > limit {
		return reference.Spec{}, fmt.Errorf("image reference has %d bytes, the limit is %d: %w", len(ref), limit, errdefs.ErrInvalidArgument)
	}
	spec, err := reference.Parse(ref)
	if err != nil {
		return reference.Spec{}, fmt.Errorf("parse image reference %q: %w: %w", ref, err, errdefs.ErrInvalidArgument)
	}
	if spec.Object == "" {
		return reference.Spec{}, fmt.Errorf("image reference %q has neither tag nor digest: %w", ref, errdefs.ErrInvalidArgument)
	}
	host := spec.Hostname()
	if !strings.ContainsAny(host, ".:") && host != "localhost" {
		return reference.Spec{}, fmt.Errorf("image reference %q does not start with a registry host; write it in full, like docker.io/library/busybox:1: %w",
			ref, errdefs.ErrInvalidArgument)
	}
	tag, dgst, pinned := strings.Cut(spec.Object, "@")
	repo, whole := strings.CutPrefix(spec.Locator, host+"/")
	// The text must be nothing but these parts: no user, no query.
	if !whole || spec.String() != ref || !hostPattern.MatchString(host) || !repoPattern.MatchString(repo) || (tag != "" && !tagPattern.MatchString(tag)) ||
		(pinned && digest.Digest(dgst).Validate() != nil) {
		return reference.Spec{}, fmt.Errorf("image reference %q is malformed, want host/repository with a tag, a digest or both: %w", ref, errdefs.ErrInvalidArgument)
	}
	return spec, nil
}

func (c *Config) match(locator string) (Registry, bool) {
	var (
		best  Registry
		found bool
	)
	for _, r := range c.Registries {
		if matches(r.Prefix, locator) && (!found || len(r.Prefix) > len(best.Prefix)) {
			best, found = r, true
		}
	}
	return best, found
}

func matches(prefix, locator string) bool {
	if domain, ok := strings.CutPrefix(prefix, "*"); ok {
		host, _, _ := strings.Cut(locator, "/")
		return strings.HasSuffix(host, domain)
	}
	rest, ok := strings.CutPrefix(locator, prefix)
	return ok && (rest == "" || rest[0] == '/')
}

func relocate(spec reference.Spec, prefix, location string) reference.Spec {
	if location == "" {
		return spec
	}
	if strings.HasPrefix(prefix, "*") {
		_, path, _ := strings.Cut(spec.Locator, "/")
		spec.Locator = location + "/" + path
		return spec
	}
	spec.Locator = location + strings.TrimPrefix(spec.Locator, prefix)
	return spec
}

func newEndpoint(spec reference.Spec, plainHTTP bool) endpoint {
	host := spec.Hostname()
	if host == "docker.io" {
		// The name that everybody writes is not the name of the machine that answers.
		host = "registry-1.docker.io"
	}
	return endpoint{ref: spec, host: host, plainHTTP: plainHTTP}
}
