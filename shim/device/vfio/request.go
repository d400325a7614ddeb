package vfio

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

// Request says where to look for the devices of a pod.
type Request struct {
	// Namespace and Pod are Kubernetes' names; empty elsewhere.
	Namespace, Pod string
	// Annotations are the pod's; CDI devices count where no kubelet knows better.
	Annotations map[string]string
	// Nodes are the device nodes of the container that the pod is made for. Those that are not VFIO's are ignored.
	Nodes []string
	// KubeletSocket is where the kubelet serves its Pod Resources API; empty asks no kubelet.
	KubeletSocket string
	// SpecDirs are the folders of the node's CDI specifications; later ones come first.
	SpecDirs []string
}

// Find returns the devices that a pod is to have, none for most. The kubelet decides about pods of its own: what it has
// allocated is theirs, and their annotations are not asked. It fails with errdefs.ErrNotFound for a device that is not
// there, errdefs.ErrFailedPrecondition for one that is not VFIO's to give, and errdefs.ErrUnavailable when the kubelet does not answer.
func (h Host) Find(ctx context.Context, r Request) ([]Device, error) {
	names, err := r.names(ctx)
	if err != nil {
		return nil, err
	}
	var devices []Device
	if len(names) > 0 {
		specs, err := openCatalogue(r.SpecDirs)
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			found, err := h.named(ctx, specs, n)
			if err != nil {
				return nil, fmt.Errorf("device %s, which %s: %w", n.name, n.source, err)
			}
			devices = append(devices, found...)
		}
	}
	for _, node := range r.Nodes {
		if !IsNode(node) {
			continue
		}
		found, err := h.Node(node)
		if err != nil {
			return nil, fmt.Errorf("device of the container: %w", err)
		}
		devices = append(devices, found...)
	}
	return devices, nil
}

// name is a CDI device, or what has the form of one: a kubelet's resource and the id of one of its devices.
type name struct {
	name string
	// source says who asks for it, in words that follow "which".
	source string
	// plugin is set when a device plugin chose the id, which need not stand in any CDI specification.
	plugin bool
}

func (r Request) names(ctx context.Context) ([]name, error) {
	if r.Pod != "" && r.KubeletSocket != "" {
		switch _, err := os.Stat(r.KubeletSocket); {
		case err == nil:
			return allocated(ctx, r.KubeletSocket, r.Namespace, r.Pod)
		case !errors.Is(err, os.ErrNotExist):
			return nil, fmt.Errorf("kubelet's pod resources socket (devices.pod_resource_api_sock): %w", err)
		}
		// Without a kubelet, whoever makes pods on this machine is its administrator.
	}
	annotated, err := annotated(r.Annotations)
	if err != nil {
		return nil, err
	}
	var names []name
	for _, n := range annotated {
		names = append(names, name{name: n, source: "an annotation names"})
	}
	return names, nil
}

// named finds the devices behind a name. A device plugin for network cards may have a PCI address for an id, and one for what is no
// hardware has no place in CDI at all: that is for the container, which is told later.
func (h Host) named(ctx context.Context, specs *catalogue, n name) ([]Device, error) {
	nodes, err := specs.nodes(n.name)
	if errdefs.IsNotFound(err) {
		_, id, _ := strings.Cut(n.name, "=")
		switch {
		case addressPattern.MatchString(id):
			d, err := h.Device(id)
			d.wanted = true
			return []Device{d}, err
		case n.plugin && specs.err == nil && !specs.knows(n.name) && !strings.HasPrefix(n.name, "nvidia.com/"):
			log.G(ctx).WithField("device", n.name).Warn("device is in no CDI specification of the node, the VM starts without it")
			return nil, nil
		}
	}
	if err != nil {
		return nil, err
	}
	var devices []Device
	for _, node := range nodes {
		if slices.Contains(commonNodes, node) {
			continue
		}
		if !IsNode(node) {
			return nil, fmt.Errorf("its CDI specification has %s, which a driver of the host serves and a VM cannot have; "+
				"the device must be bound to vfio-pci, and its specification name /dev/vfio/...: %w", node, errdefs.ErrFailedPrecondition)
		}
		found, err := h.Node(node)
		if err != nil {
			return nil, err
		}
		for i := range found {
			found[i].trusted = true
		}
		devices = append(devices, found...)
	}
	if len(devices) == 0 {
		return nil, fmt.Errorf("its CDI specification names no device below /dev/vfio: %w", errdefs.ErrFailedPrecondition)
	}
	return devices, nil
}
