package registry

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"time"

	"github.com/containerd/errdefs"
)

// AllHosts is the key in Config.Hosts of what holds for registries that have no entry of their own.
const AllHosts = "_default"

// Host is one place of a containerd hosts.toml: a mirror of a registry, or, last in the list, the registry itself.
type Host struct {
	// Address is host[:port]. Empty means the registry's own.
	Address string
	// PlainHTTP and Path, the root of the API, go with an Address.
	PlainHTTP bool
	Path      string
	// NoTags and NoPull are missing capabilities: "resolve" and "pull".
	NoTags, NoPull bool
	// Header is sent along with every request to this host, and to no other.
	Header http.Header
	// Roots are PEM certificates of authorities that are trusted for this host beside the others.
	Roots []byte
	// Certificates prove who the guest is.
	Certificates []tls.Certificate
	// DialTimeout replaces Config.IdleTimeout for connecting where it is not 0.
	DialTimeout time.Duration
}

// site is how a host is talked to: with which certificates and limits.
type site struct {
	http *http.Client
	// token asks token services; see tokenTransport.
	token *http.Client
}

func newSite(c *Config, h *Host, roots *x509.CertPool) (*site, error) {
	base := newHTTPTransport(c, roots)
	if h != nil {
		if h.DialTimeout > 0 {
			base.DialContext = dialer(h.DialTimeout)
		}
		base.TLSClientConfig.Certificates = h.Certificates
		if len(h.Roots) > 0 {
			own := withSystem(roots)
			if !own.AppendCertsFromPEM(h.Roots) {
				return nil, fmt.Errorf("ca of registry host %s holds no PEM certificate: %w", h.Address, errdefs.ErrInvalidArgument)
			}
			base.TLSClientConfig.RootCAs = own
		}
	}
	return &site{
		http: &http.Client{
			Transport:     &transport{base: base, idle: c.IdleTimeout, rate: c.MinRate, attempts: c.Attempts},
			CheckRedirect: checkRedirect,
		},
		token: &http.Client{Transport: base, Timeout: c.IdleTimeout, CheckRedirect: checkRedirect},
	}, nil
}
