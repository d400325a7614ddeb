package initdata

import (
	"errors"
	"fmt"
	"net/url"

	"github.com/coffer-project/coffer/proto/imagepolicy"
	"github.com/coffer-project/coffer/proto/kbs"
	"github.com/coffer-project/coffer/proto/lazyregexp"
)

// locationPattern is host[:port][/path], the form of prefix, location and mirror in containers-registries.conf, and *.host for prefixes.
var locationPattern = lazyregexp.New(`^(\*\.)?[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*$`)

// ipv6Pattern is the bracketed form of a literal address with an optional port and path.
var ipv6Pattern = lazyregexp.New(`^\[[0-9a-fA-F:.]+\](:[0-9]{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*$`)

func (r *RegistryConfig) validate() error {
	var faults []error
	check := func(key, value string) {
		if len(value) > 512 || !(locationPattern.MatchString(value) || ipv6Pattern.MatchString(value)) {
			faults = append(faults, fmt.Errorf("image.registry_config.%s %q is not host[:port][/path]", key, clip(value)))
		}
	}
	for i, host := range r.UnqualifiedSearch {
		check(fmt.Sprintf("unqualified-search-registries[%d]", i), host)
	}
	for i, registry := range r.Registries {
		if registry.Prefix == "" && registry.Location == "" {
			faults = append(faults, fmt.Errorf("image.registry_config.registry[%d] has neither prefix nor location", i))
		}
		if registry.Prefix != "" {
			check(fmt.Sprintf("registry[%d].prefix", i), registry.Prefix)
		}
		if registry.Location != "" {
			check(fmt.Sprintf("registry[%d].location", i), registry.Location)
		}
		for j, mirror := range registry.Mirrors {
			check(fmt.Sprintf("registry[%d].mirror[%d].location", i, j), mirror.Location)
		}
	}
	return errors.Join(faults...)
}

// sources checks where the rest of the puller's settings comes from.
func (s *ImageSettings) sources() error {
	var faults []error
	for key, uri := range map[string]string{
		"authenticated_registry_credentials_uri": s.CredentialsURI,
		"registry_configuration_uri":             s.RegistryConfigURI,
		"image_security_policy_uri":              s.SecurityPolicyURI,
		"sigstore_config_uri":                    s.SigstoreConfigURI,
	} {
		if uri == "" {
			continue
		}
		if _, err := kbs.ParseResourceURI(uri); err != nil {
			// A file:// would be one of the guest's image, which brings none.
			faults = append(faults, fmt.Errorf("image.%s: %w", key, err))
		}
	}
	if s.RegistryConfigURI != "" && s.Registries != nil {
		faults = append(faults, errors.New("image.registry_configuration_uri and image.registry_config exclude each other"))
	}
	if s.SecurityPolicyURI != "" && s.SecurityPolicy != "" {
		faults = append(faults, errors.New("image.image_security_policy_uri and image.image_security_policy exclude each other"))
	}
	if s.SecurityPolicy != "" {
		if _, err := imagepolicy.Parse([]byte(s.SecurityPolicy)); err != nil {
			faults = append(faults, fmt.Errorf("image.image_security_policy: %w", err))
		}
	}
	if s.SigstoreConfigURI != "" && s.SigstoreConfig != "" {
		faults = append(faults, errors.New("image.sigstore_config_uri and image.sigstore_config exclude each other"))
	}
	if s.SigstoreConfig != "" {
		if _, err := imagepolicy.ParsePlaces([]byte(s.SigstoreConfig)); err != nil {
			faults = append(faults, fmt.Errorf("image.sigstore_config: %w", err))
		}
	}
	if p := s.Proxy; p != nil {
		faults = append(faults, checkProxy("https_proxy", p.HTTPS), checkProxy("http_proxy", p.HTTP))
		if p.HTTPS == "" && p.HTTP == "" {
			faults = append(faults, errors.New("image.image_pull_proxy names no proxy"))
		}
	}
	return errors.Join(faults...)
}

func checkProxy(key, value string) error {
	if value == "" {
		return nil
	}
	u, err := url.Parse(value)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https" && u.Scheme != "socks5") || u.Host == "" || (u.Path != "" && u.Path != "/") || u.RawQuery != "" {
		return fmt.Errorf("image.image_pull_proxy.%s is not http://host:port, nor https:// or socks5:// likewise", key) // not quoted: it may carry a password
	}
	return nil
}
