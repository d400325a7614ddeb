package registry

import (
	"strings"

	"github.com/coffer-project/coffer/proto/initdata"
)

// FromMeasured takes what the measured initdata says about registries. The result still needs New to be checked.
func FromMeasured(s *initdata.ImageSettings) Config {
	config := Config{ExtraRoots: []byte(strings.Join(s.ExtraRoots, "\n"))}
	if s.Registries == nil {
		return config
	}
	for _, r := range s.Registries.Registries {
		prefix := r.Prefix
		if prefix == "" {
			prefix = r.Location
		}
		entry := Registry{Prefix: prefix, Location: r.Location, PlainHTTP: r.Insecure, Blocked: r.Blocked}
		for _, m := range r.Mirrors {
			entry.Mirrors = append(entry.Mirrors, Mirror{Location: m.Location, PlainHTTP: m.Insecure})
		}
		config.Registries = append(config.Registries, entry)
	}
	return config
}
