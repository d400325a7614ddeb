package task

import (
	"fmt"
	"math"
	"strconv"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// podResources reads the sum of the containers' resources from the annotations by which containerd's own sandboxes carry
// it. They do not tell the RuntimeClass's overhead.
func podResources(annotations map[string]string) (*cri.LinuxContainerResources, error) {
	resources := new(cri.LinuxContainerResources)
	for key, to := range map[string]*int64{
		"io.kubernetes.cri.sandbox-cpu-period": &resources.CpuPeriod,
		"io.kubernetes.cri.sandbox-cpu-quota":  &resources.CpuQuota,
		"io.kubernetes.cri.sandbox-cpu-shares": &resources.CpuShares,
		"io.kubernetes.cri.sandbox-memory":     &resources.MemoryLimitInBytes,
	} {
		text, ok := annotations[key]
		if !ok {
			continue
		}
		value, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("annotation %s: %.40q is no whole number: %w", key, text, errdefs.ErrInvalidArgument)
		}
		*to = value
	}
	return resources, nil
}

// containerResources says in CRI's words what the only container of a VM may use.
func containerResources(limits *specs.LinuxResources) *cri.LinuxContainerResources {
	resources := new(cri.LinuxContainerResources)
	if cpu := limits.CPU; cpu != nil && cpu.Quota != nil {
		resources.CpuQuota = *cpu.Quota
		if cpu.Period != nil {
			resources.CpuPeriod = int64(min(*cpu.Period, math.MaxInt64))
		}
	}
	if memory := limits.Memory; memory != nil && memory.Limit != nil {
		resources.MemoryLimitInBytes = *memory.Limit
	}
	return resources
}
