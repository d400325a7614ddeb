package vfio

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/pkg/parser"
)

// AnnotationPrefix begins the annotations that name CDI devices, fully qualified and separated by commas.
const AnnotationPrefix = "cdi.k8s.io/"

// annotated lists the CDI devices that annotations name, in the order of their keys. It fails with errdefs.ErrInvalidArgument for a
// name that is not fully qualified.
func annotated(annotations map[string]string) ([]string, error) {
	var keys, names []string
	for key := range annotations {
		if strings.HasPrefix(key, AnnotationPrefix) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	for _, key := range keys {
		for name := range strings.SplitSeq(annotations[key], ",") {
			if _, _, _, err := parser.ParseQualifiedName(name); err != nil {
				return nil, fmt.Errorf("annotation %.200s: %.200q is no CDI device such as nvidia.com/pgpu=12: %w", key, name, errdefs.ErrInvalidArgument)
			}
			names = append(names, name)
		}
	}
	return names, nil
}

// catalogue is what the node's CDI specifications say.
type catalogue struct {
	cache *cdi.Cache
	dirs  []string
	err   error
}

// openCatalogue reads the specifications. Faulty ones count when a device is not found.
func openCatalogue(dirs []string) (*catalogue, error) {
	cache, err := cdi.NewCache(cdi.WithSpecDirs(dirs...), cdi.WithAutoRefresh(false))
	if err != nil {
		return nil, fmt.Errorf("read CDI specifications: %w", err)
	}
	return &catalogue{cache: cache, dirs: dirs, err: cache.Refresh()}, nil
}

// knows tells whether any specification is about the kind of a device's name.
func (c *catalogue) knows(name string) bool {
	kind, _, _ := strings.Cut(name, "=")
	return slices.ContainsFunc(c.cache.ListDevices(), func(other string) bool { return strings.HasPrefix(other, kind+"=") })
}

// nodes are the device nodes of the host behind a CDI device. It fails with errdefs.ErrNotFound for a device that no
// specification has.
func (c *catalogue) nodes(name string) ([]string, error) {
	d := c.cache.GetDevice(name)
	if d == nil {
		return nil, errors.Join(fmt.Errorf("no CDI specification in %s has the device %s: %w", strings.Join(c.dirs, ", "), name, errdefs.ErrNotFound), c.err)
	}
	var nodes []string
	for _, node := range d.ContainerEdits.DeviceNodes {
		path := node.HostPath
		if path == "" {
			path = node.Path
		}
		nodes = append(nodes, path)
	}
	return nodes, nil
}
