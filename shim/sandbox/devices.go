package sandbox

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/coffer-project/coffer/shim/bundle"
	"github.com/coffer-project/coffer/shim/config"
	"github.com/coffer-project/coffer/shim/device/vfio"
	"github.com/coffer-project/coffer/shim/vm"
)

// devicesName is the folder beside the pods' state directories that says which pod has which device.
const devicesName = "devices"

// nvidiaKind is what the guest's CDI specification calls GPUs.
const nvidiaKind = "nvidia.com/gpu"

// claimDevices reserves the physical devices of the pod and makes them ready for its VM.
func (p *Pod) claimDevices(ctx context.Context) ([]vm.PCIDevice, error) {
	conf := p.config.Devices
	if !conf.Enabled() {
		return nil, nil
	}
	defer p.phase(phaseDevices)()
	namespace, name := podName(p.request.Config)
	host := p.platform.Devices
	devices, err := host.Find(ctx, vfio.Request{
		Namespace: namespace, Pod: name, Annotations: p.request.Config.GetAnnotations(), Nodes: p.request.DeviceNodes,
		KubeletSocket: conf.PodResourceAPISock, SpecDirs: conf.CDISpecDirs,
	})
	if err != nil {
		return nil, fmt.Errorf("find the pod's devices: %w", err)
	}
	manager := &vfio.Manager{
		Host: host, Dir: devicesDir(p.stateDir), Bind: conf.Bind, MaxDevices: conf.PCIeRootPort,
		Confidential: p.config.TEE != config.TEENone,
	}
	claim, err := manager.Reserve(ctx, vfio.Owner{Dir: p.stateDir, Pod: p.ID()}, devices)
	if err != nil {
		return nil, fmt.Errorf("reserve the pod's devices: %w", err)
	}
	p.undo.push("give devices back", claim.Remove)
	p.mu.Lock()
	p.devices = claim
	p.mu.Unlock()
	added, err := claim.Add(ctx)
	if err != nil {
		return nil, fmt.Errorf("prepare the pod's devices: %w", err)
	}
	for _, d := range added {
		log.G(ctx).WithField("sandbox", p.ID()).WithField("device", d.Address).Info("device is given to the pod")
	}
	return added, nil
}

// nodesOf are the host's memory nodes that devices are next to.
func nodesOf(devices []vm.PCIDevice) (nodes []int) {
	for _, d := range devices {
		if d.NUMANode >= 0 && !slices.Contains(nodes, d.NUMANode) {
			nodes = append(nodes, d.NUMANode)
		}
	}
	slices.Sort(nodes)
	return nodes
}

func devicesDir(stateDir string) string { return filepath.Join(filepath.Dir(stateDir), devicesName) }

// PCIDevices are the physical devices behind a container's VFIO nodes, all of the pod's when all is set. Nodes of other devices are
// ignored. It is nil for a pod that may have no devices, and fails with errdefs.ErrFailedPrecondition for a node of a device that the
// pod does not have: a VM gets its devices when it starts.
func (p *Pod) PCIDevices(nodes []string, all bool) ([]bundle.PCIDevice, error) {
	p.mu.Lock()
	claim, instance := p.devices, p.instance
	p.mu.Unlock()
	if claim == nil {
		return nil, nil
	}
	if all {
		nodes = append(slices.Clone(nodes), claim.Nodes()...)
	}
	out := []bundle.PCIDevice{}
	seen := map[string]bool{}
	for _, node := range nodes {
		if !vfio.IsNode(node) || seen[node] {
			continue
		}
		seen[node] = true
		behind := claim.Behind(node)
		if len(behind) == 0 {
			return nil, fmt.Errorf("the container has %s, which the pod was not given when it started: its VM has the devices that the kubelet had "+
				"allocated by then, or that the pod's annotations cdi.k8s.io/* name: %w", node, errdefs.ErrFailedPrecondition)
		}
		d := bundle.PCIDevice{Node: node}
		for _, f := range behind {
			guest, err := instance.PCIPath(f.Address)
			if err != nil {
				return nil, err
			}
			d.Functions = append(d.Functions, bundle.PCIFunction{Host: f.Address, Guest: guest})
			if index, ok := claim.GPU(f.Address); ok {
				d.Kind, d.Index = nvidiaKind, index
			}
		}
		out = append(out, d)
	}
	return out, nil
}
