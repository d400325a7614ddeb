package registry

import (
	"fmt"
	"net/http"
	"path"
	"strings"

	"github.com/containerd/containerd/v2/pkg/reference"
	"github.com/containerd/errdefs"
)

// apiRoot is where the distribution protocol begins at every host that does not say otherwise.
const apiRoot = "/v2"

// endpoint is one place to fetch a reference from.
type endpoint struct {
	// ref is the reference as this endpoint knows it.
	ref       reference.Spec
	host      string
	root      string // path of the API
	plainHTTP bool
	// namespace is the registry that a mirror of many stands in for; empty where the endpoint is the registry itself.
	namespace string
	// noTags are endpoints that may give content but not say what a tag means, noPull the reverse.
	noTags, noPull bool
	// special is what a hosts.toml says about the host; nil for most.
	special *Host
	// site is how the host is talked to.
	site *site
}

func (e endpoint) scheme() string {
	if e.plainHTTP {
		return "http"
	}
	return "https"
}

// repository is the path of the repository at this endpoint.
func (e endpoint) repository() string {
	_, repo, _ := strings.Cut(e.ref.Locator, "/")
	return repo
}

// url is the address of a document or blob. The object may end in a query.
func (e endpoint) url(kind, object string) string {
	object, query, _ := strings.Cut(object, "?")
	address := e.scheme() + "://" + e.host + path.Join("/", e.root, e.repository(), kind, object)
	if e.namespace != "" {
		query = strings.TrimPrefix(query+"&ns="+e.namespace, "&")
	}
	if query != "" {
		address += "?" + query
	}
	return address
}

func (e endpoint) header() http.Header {
	h := http.Header{"User-Agent": {"coffer"}}
	if e.special != nil {
		for key, values := range e.special.Header {
			h[http.CanonicalHeaderKey(key)] = values
		}
	}
	return h
}

// endpoints lists where a reference may be fetched from, mirrors first.
func (c *Config) endpoints(ref string) ([]endpoint, error) {
	spec, err := parseReference(ref)
	if err != nil {
		return nil, err
	}
	r, found := c.match(spec.Locator)
	if !found {
		return c.expand(spec, false), nil
	}
	if r.Blocked {
		return nil, fmt.Errorf("registry %q is blocked by the configuration: %w", r.Prefix, errdefs.ErrPermissionDenied)
	}
	var list []endpoint
	for _, m := range r.Mirrors {
		list = append(list, c.expand(relocate(spec, r.Prefix, m.Location), m.PlainHTTP)...)
	}
	return append(list, c.expand(relocate(spec, r.Prefix, r.Location), r.PlainHTTP)...), nil
}

// expand adds what the hosts.toml of a reference's registry says, or else that of all registries.
func (c *Config) expand(spec reference.Spec, plainHTTP bool) []endpoint {
	name := spec.Hostname()
	hosts, found := c.Hosts[name]
	if !found {
		hosts, found = c.Hosts[AllHosts]
	}
	if !found {
		return []endpoint{newEndpoint(spec, plainHTTP)}
	}
	var list []endpoint
	for i := range hosts {
		h := &hosts[i]
		ep := newEndpoint(spec, plainHTTP)
		ep.noTags, ep.noPull, ep.special = h.NoTags, h.NoPull, h
		if h.Address != "" {
			ep.plainHTTP, ep.root = h.PlainHTTP, h.Path
			if h.Address != ep.host {
				ep.host, ep.namespace = h.Address, name
			}
		}
		list = append(list, ep)
	}
	return list
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
	return endpoint{ref: spec, host: host, root: apiRoot, plainHTTP: plainHTTP}
}
