package registry

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/containerd/errdefs"
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
	// MinRate is the fewest bytes per second that a registry may send on average, over twice the IdleTimeout that was spent
	// with waiting for it. 0 means 4 KiB/s.
	MinRate int64
	// Streams is over how many requests at a time a large blob is read ahead, once a single one is seen to be slow and the
	// registry answers ranges. 0 means 4, 1 turns it off.
	Streams int
	// Hosts are hosts.toml files by registry host; AllHosts stands for registries without one. The places of a list are
	// tried in order.
	Hosts map[string][]Host
	// Credentials returns what a registry wants to be shown for a repository, which is written host/path; nothing where
	// there is nothing to show. It is called only once a registry asks. May be nil.
	Credentials func(ctx context.Context, repository string) (Credential, error)
	// Late completes Registries, and replaces Hosts where it gives any, before the first request. It is called again when it
	// fails. nil means that nothing is missing.
	Late func(context.Context) (Late, error)
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

// Credential is what a guest shows a registry: a name with a password, or one of the tokens alone.
type Credential struct {
	User, Password string
	// IdentityToken is exchanged for a token at the registry's token service.
	IdentityToken string
	// RegistryToken is shown as it is.
	RegistryToken string
}

const (
	defaultIdleTimeout = 30 * time.Second
	defaultAttempts    = 4
	defaultMinRate     = 4 << 10
	defaultStreams     = 4
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
	if c.IdleTimeout < 0 || c.Attempts < 0 || c.MinRate < 0 || c.Streams < 0 {
		errs = append(errs, errors.New("idle timeout, attempts, rate and streams must not be negative"))
	}
	if len(errs) > 0 {
		return fmt.Errorf("registry configuration: %w: %w", errors.Join(errs...), errdefs.ErrInvalidArgument)
	}
	return nil
}

// roots are the system's authorities and the extra ones; nil are the system's alone, which are read when they are needed.
func (c *Config) roots() (*x509.CertPool, error) {
	if len(c.ExtraRoots) == 0 {
		return nil, nil
	}
	pool := withSystem(nil)
	if !pool.AppendCertsFromPEM(c.ExtraRoots) {
		return nil, fmt.Errorf("extra root certificates hold no PEM certificate: %w", errdefs.ErrInvalidArgument)
	}
	return pool, nil
}

// withSystem is a copy of a pool, or of the system's authorities for nil.
func withSystem(pool *x509.CertPool) *x509.CertPool {
	if pool != nil {
		return pool.Clone()
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		// A guest image may hold no certificates at all; then only what is added counts.
		return x509.NewCertPool()
	}
	return pool
}
