package bundle

import (
	"encoding/json"
	"fmt"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// WithLimits is the bundle with other limits: those that are set take the place of the specification's, as an update of a
// running container has it. Devices are no limits and stay as they are.
func (b *Bundle) WithLimits(limits *specs.LinuxResources) (*Bundle, error) {
	linux := *b.spec.Linux
	resources := new(specs.LinuxResources)
	// What is not set has no place in JSON, so that decoding one over the other changes what is set alone.
	for _, layer := range []*specs.LinuxResources{linux.Resources, limits} {
		if layer == nil {
			continue
		}
		raw, err := json.Marshal(layer)
		if err == nil {
			err = json.Unmarshal(raw, resources)
		}
		if err != nil {
			return nil, fmt.Errorf("merge resources: %w: %w", err, errdefs.ErrInvalidArgument)
		}
	}
	resources.Devices = nil
	if linux.Resources != nil {
		resources.Devices = linux.Resources.Devices
	}
	linux.Resources = resources
	spec := *b.spec
	spec.Linux = &linux
	return &Bundle{path: b.path, spec: &spec}, nil
}
