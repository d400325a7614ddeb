package podpolicy

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
)

// The kinds of mounts, for rules.rego.
const (
	kindCopied = "copied" // files of the host
	kindSecret = "secret" // the same, in which sealed secrets may be
	kindMemory = "memory" // an emptyDir
	kindImage  = "image"
)

// gpuResources begins the names of the extended resources by which a pod asks for whole GPUs: pgpu, or the name of a model.
const gpuResources = "nvidia.com/"

// maxGPUs is more than a machine has.
const maxGPUs = 64

// find returns a volume of the pod.
func (p *podSpec) find(name string) (*volume, error) {
	i := slices.IndexFunc(p.Volumes, func(v volume) bool { return v.Name == name })
	if i < 0 {
		return nil, fmt.Errorf("pod has no volume %s", name)
	}
	return &p.Volumes[i], nil
}

// addMounts binds what is mounted to the kind of its volume, and images to their digests.
func (r *rule) addMounts(ctx context.Context, pod *podSpec, c *container, o Options) error {
	if c.TerminationPath != "" {
		r.Mounts[path.Clean(c.TerminationPath)] = kindCopied
	}
	for _, m := range c.VolumeMounts {
		v, err := pod.find(m.Name)
		if err != nil {
			return err
		}
		for kind := range v.Rest {
			if kind != "emptyDir" {
				return fmt.Errorf("volume %s is of the kind %s, which a policy cannot bind: the host would choose what is in it", v.Name, kind)
			}
		}
		if m.SubPathExpr != "" {
			return fmt.Errorf("volume %s: subPathExpr cannot be bound", v.Name)
		}
		at := path.Clean(m.MountPath)
		if r.Mounts[at] = v.kind(); r.Mounts[at] != kindImage {
			continue
		}
		img, err := o.Lookup(ctx, v.Image.Reference)
		if err != nil {
			return fmt.Errorf("volume %s: %w", v.Name, err)
		}
		r.Images[at] = &source{Digests: img.Digests, Path: strings.Trim(path.Clean("/"+m.SubPath), "/")}
	}
	return nil
}

// kind is what the rules know a volume by.
func (v *volume) kind() string {
	switch {
	case v.Image != nil:
		return kindImage
	case v.Secret != nil:
		return kindSecret
	case v.Projected != nil:
		for _, s := range v.Projected.Sources {
			if s.Secret != nil {
				return kindSecret
			}
		}
		return kindCopied
	case v.ConfigMap != nil, v.DownwardAPI != nil:
		return kindCopied
	default:
		return kindMemory
	}
}

// addDevices binds block devices to their paths, and GPUs to their number.
func (r *rule) addDevices(pod *podSpec, c *container) error {
	for _, d := range c.VolumeDevices {
		if _, err := pod.find(d.Name); err != nil {
			return err
		}
		if d.DevicePath == "" || path.Clean(d.DevicePath) != d.DevicePath {
			return fmt.Errorf("block volume %s has no clean devicePath", d.Name)
		}
		r.Devices = append(r.Devices, d.DevicePath)
	}
	for name, amount := range c.Resources.Limits {
		if !strings.Contains(name, "/") {
			continue
		}
		if !strings.HasPrefix(name, gpuResources) {
			return fmt.Errorf("devices of the kind %s cannot be bound: only GPUs can (%spgpu)", name, gpuResources)
		}
		n, err := strconv.Atoi(fmt.Sprint(amount))
		if err != nil || n < 0 || n > maxGPUs {
			return errors.New("the limit " + name + " is no number of GPUs")
		}
		r.GPUs += n
	}
	return nil
}
