package initdata

import (
	"errors"
	"fmt"

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
