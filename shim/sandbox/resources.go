package sandbox

import (
	"context"
	"encoding/json"
	"fmt"
	"math"

	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	"github.com/containerd/errdefs"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coffer-project/coffer/shim/config"
)

// updatedResources is the name under which containerd's CRI plugin hands over a pod's changed resources, and
// updatedResourcesType their type.
const (
	updatedResources     = "updated-resources"
	updatedResourcesType = "io.containerd.cri.v1/UpdatedResources"
)

// DemandOf is what the orchestrator says of the pod's containers together.
func DemandOf(overhead, resources *cri.LinuxContainerResources) config.Demand {
	return config.Demand{
		MilliCPUs:   milliCPUs(resources.GetCpuQuota(), resources.GetCpuPeriod(), resources.GetCpuShares()),
		MemoryBytes: resources.GetMemoryLimitInBytes(), OverheadBytes: overhead.GetMemoryLimitInBytes(),
	}
}

// defaultPeriod is the kernel's, in microseconds.
const defaultPeriod = 100_000

// milliCPUs is the processor time that a limit (quota, in microseconds per period) and a request (shares, of which 1024
// stand for one processor) add up to: the larger of both, rounded up. 0 and negative values mean "not said".
func milliCPUs(quota, period, shares int64) int64 {
	if period <= 0 {
		period = defaultPeriod
	}
	// In floating point, in which nothing overflows; what is beyond a million processors is a mistake anyway.
	milli := max(float64(quota)*1000/float64(period), float64(shares)*1000/1024, 0)
	return int64(math.Ceil(min(milli, 1e9)))
}

// Holds tells whether the pod's VM, whose size is fixed, has room for what a container is to be allowed. It fails with
// errdefs.ErrFailedPrecondition.
func (p *Pod) Holds(demand config.Demand) error {
	p.mu.Lock()
	size := p.pod
	p.mu.Unlock()
	return size.Holds(demand)
}

// UpdateSandbox hears of a pod whose resources were changed in place. The VM keeps its size, so that a pod that needs
// more is refused with errdefs.ErrFailedPrecondition; the containers' own limits are changed one by one, by their tasks.
func (s *Service) UpdateSandbox(_ context.Context, r *sandboxapi.UpdateSandboxRequest) (*sandboxapi.UpdateSandboxResponse, error) {
	if err := s.check(r.GetSandboxID()); err != nil {
		return nil, err
	}
	extension, ok := r.GetSandbox().GetExtensions()[updatedResources]
	if !ok {
		return nil, fmt.Errorf("update of pod %s that changes no resources: %w", r.GetSandboxID(), errdefs.ErrNotImplemented)
	}
	var changed struct{ Overhead, Resources *cri.LinuxContainerResources }
	if got := extension.GetTypeUrl(); got != updatedResourcesType || len(extension.GetValue()) > maxPodConfigBytes {
		return nil, fmt.Errorf("resources of pod %s: %d bytes of type %.100q: %w",
			r.GetSandboxID(), len(extension.GetValue()), got, errdefs.ErrInvalidArgument)
	}
	if err := json.Unmarshal(extension.GetValue(), &changed); err != nil {
		return nil, fmt.Errorf("decode resources of pod %s: %w: %w", r.GetSandboxID(), err, errdefs.ErrInvalidArgument)
	}
	if err := s.pod.Holds(DemandOf(changed.Overhead, changed.Resources)); err != nil {
		return nil, fmt.Errorf("update pod %s: %w", r.GetSandboxID(), err)
	}
	return &sandboxapi.UpdateSandboxResponse{}, nil
}
