package cdi

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/lazyregexp"
)

// annotationPrefix starts the annotations that name devices.
const annotationPrefix = "cdi.k8s.io/"

// maxDevices bounds the devices of one container; the largest machine has 8 GPUs.
const maxDevices = 32

var (
	// key is the annotation of one passed-through device, of which Kata's shims number the group.
	key = lazyregexp.New(`^cdi\.k8s\.io/vfio(0|[1-9][0-9]{0,5})$`)
	// device is a kind and the number of a device of it.
	device = lazyregexp.New(`^[a-z0-9][a-z0-9.-]{0,63}/[a-z0-9][a-z0-9-]{0,31}=(0|[1-9][0-9]{0,2})$`)
)

// Requested returns the devices that annotations name, in order. An annotation of this kind with another key or value than Kata's shims
// write, a device that is named twice, or too many are errdefs.ErrInvalidArgument.
func Requested(annotations map[string]string) ([]string, error) {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(annotations)) {
		if !strings.HasPrefix(name, annotationPrefix) {
			continue
		}
		value := annotations[name]
		switch {
		case !key.MatchString(name):
			return nil, fmt.Errorf("annotation %.64q names no passed-through device (%svfioN): %w", name, annotationPrefix, errdefs.ErrInvalidArgument)
		case !device.MatchString(value):
			return nil, fmt.Errorf("annotation %s: device %.64q is not one such as nvidia.com/gpu=0: %w", name, value, errdefs.ErrInvalidArgument)
		case slices.Contains(names, value):
			return nil, fmt.Errorf("annotation %s: device %s is named twice: %w", name, value, errdefs.ErrInvalidArgument)
		case len(names) == maxDevices:
			return nil, fmt.Errorf("annotations name more than %d devices: %w", maxDevices, errdefs.ErrInvalidArgument)
		}
		names = append(names, value)
	}
	slices.Sort(names)
	return names, nil
}
