package registry

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/net/http/httpproxy"

	"github.com/coffer-project/coffer/proto/initdata"
)

// Fetch returns a resource of the key broker by its URI (kbs:///repository/type/tag).
type Fetch func(ctx context.Context, uri string) ([]byte, error)

// FromMeasured takes what the measured document says about registries: settings from its cdh.toml, and its hosts.toml and
// auth.json entries. fetch is nil without a key broker. The result still needs New to be checked.
func FromMeasured(doc *initdata.Document, s *initdata.ImageSettings, fetch Fetch) (Config, error) {
	config := Config{ExtraRoots: []byte(strings.Join(s.ExtraRoots, "\n")), IdleTimeout: time.Duration(s.PullProgress)}
	if s.Registries != nil {
		config.Registries = registries(s.Registries)
	}
	if p := s.Proxy; p != nil {
		config.Proxy = Proxies(p.HTTP, p.HTTPS, p.NoProxy)
	}
	if doc == nil {
		doc = &initdata.Document{}
	}
	hosts, err := doc.Hosts()
	if err != nil {
		return Config{}, err
	}
	src := &sources{uri: s.CredentialsURI, fetch: fetch}
	if text, ok := doc.Data[initdata.KeyAuth]; ok {
		if s.CredentialsURI != "" {
			return Config{}, fmt.Errorf("%s and image.authenticated_registry_credentials_uri exclude each other: %w", initdata.KeyAuth, errdefs.ErrInvalidArgument)
		}
		if src.auths, err = ParseAuthFile([]byte(text)); err != nil {
			return Config{}, err
		}
	}
	if src.uri != "" || src.auths != nil {
		config.Credentials = src.credential
	}
	if s.RegistryConfigURI != "" || len(hosts) > 0 {
		config.Late = func(ctx context.Context) (Late, error) { return src.late(ctx, s.RegistryConfigURI, hosts) }
	}
	return config, nil
}

// Proxies chooses proxies as the environment variables HTTP_PROXY, HTTPS_PROXY and NO_PROXY would. The environment itself
// is not looked at.
func Proxies(forHTTP, forHTTPS, noProxy string) func(*http.Request) (*url.URL, error) {
	choose := (&httpproxy.Config{HTTPProxy: forHTTP, HTTPSProxy: forHTTPS, NoProxy: noProxy}).ProxyFunc()
	return func(r *http.Request) (*url.URL, error) { return choose(r.URL) }
}

func registries(c *initdata.RegistryConfig) []Registry {
	var list []Registry
	for _, r := range c.Registries {
		prefix := r.Prefix
		if prefix == "" {
			prefix = r.Location
		}
		entry := Registry{Prefix: prefix, Location: r.Location, PlainHTTP: r.Insecure, Blocked: r.Blocked}
		for _, m := range r.Mirrors {
			entry.Mirrors = append(entry.Mirrors, Mirror{Location: m.Location, PlainHTTP: m.Insecure})
		}
		list = append(list, entry)
	}
	return list
}

// sources fetches what the document only names.
type sources struct {
	uri   string
	fetch Fetch
	auths *AuthFile // of the document itself
}

// credential asks the broker anew for each repository: credentials may be replaced while the pod runs, and few are asked for.
func (s *sources) credential(ctx context.Context, repository string) (Credential, error) {
	if s.auths != nil {
		return s.auths.Find(repository), nil
	}
	raw, err := s.resource(ctx, s.uri)
	if err != nil {
		return Credential{}, err
	}
	file, err := ParseAuthFile(raw)
	if err != nil {
		return Credential{}, fmt.Errorf("%s: %w", s.uri, err)
	}
	return file.Find(repository), nil
}

func (s *sources) resource(ctx context.Context, uri string) ([]byte, error) {
	if s.fetch == nil {
		return nil, fmt.Errorf("%s: the guest was given no key broker (kbc in the initdata's cdh.toml): %w", uri, errdefs.ErrFailedPrecondition)
	}
	return s.fetch(ctx, uri)
}

func (s *sources) late(ctx context.Context, uri string, hosts map[string][]initdata.Host) (Late, error) {
	var out Late
	if uri != "" {
		raw, err := s.resource(ctx, uri)
		if err != nil {
			return Late{}, err
		}
		config, err := initdata.ParseRegistries(raw)
		if err != nil {
			return Late{}, fmt.Errorf("%s: %w", uri, err)
		}
		out.Registries = registries(config)
	}
	if len(hosts) > 0 {
		out.Hosts = make(map[string][]Host, len(hosts))
	}
	for registry, list := range hosts {
		for _, h := range list {
			host, err := s.host(ctx, h)
			if err != nil {
				return Late{}, fmt.Errorf("%s: %w", initdata.HostsKey(registry), err)
			}
			out.Hosts[registry] = append(out.Hosts[registry], host)
		}
	}
	return out, nil
}

// host fetches the files that a place's entry names.
func (s *sources) host(ctx context.Context, h initdata.Host) (Host, error) {
	out := Host{
		Address: h.Address, PlainHTTP: h.PlainHTTP, Path: h.Path, NoTags: !h.Resolve, NoPull: !h.Pull,
		Header: h.Header, DialTimeout: h.DialTimeout,
	}
	for _, src := range h.CA {
		raw, err := s.file(ctx, src)
		if err != nil {
			return Host{}, err
		}
		out.Roots = append(append(out.Roots, raw...), '\n')
	}
	for _, pair := range h.Client {
		cert, err := s.file(ctx, pair.Cert)
		if err != nil {
			return Host{}, err
		}
		key, err := s.file(ctx, pair.Key)
		if err != nil {
			return Host{}, err
		}
		both, err := tls.X509KeyPair(cert, key)
		if err != nil {
			// The cause speaks of the form, never of the content.
			return Host{}, fmt.Errorf("client %s: %w: %w", pair.Cert.Name, err, errdefs.ErrInvalidArgument)
		}
		out.Certificates = append(out.Certificates, both)
	}
	if len(h.CA) > 0 && len(out.Roots) == len(h.CA) {
		return Host{}, fmt.Errorf("ca is empty: %w", errdefs.ErrInvalidArgument)
	}
	return out, nil
}

func (s *sources) file(ctx context.Context, src initdata.Source) ([]byte, error) {
	if src.URI == "" {
		return []byte(src.Text), nil
	}
	return s.resource(ctx, src.URI)
}
