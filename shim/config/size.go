package config

import (
	"fmt"

	"github.com/containerd/errdefs"
)

// Demand is what a pod's containers may use together, as their orchestrator says it. A zero is "not said".
type Demand struct {
	// MilliCPUs is the larger of the sums of the containers' CPU limits and requests: those with a limit can use no
	// more, and what was requested is theirs.
	MilliCPUs int64
	// MemoryBytes is the sum of the containers' memory limits.
	MemoryBytes int64
	// OverheadBytes is what the RuntimeClass adds to each pod's memory.
	OverheadBytes int64
}

// size makes room in the VM of pod for the demand. The default memory is the guest's own, holds the images and serves
// containers without a limit, so that what is limited comes on top. CPUs are not kept apart like that: the guest's own
// processes are busy when containers are not.
func (h *Hypervisor) size(pod Pod, demand Demand) (Pod, error) {
	vcpus := (max(demand.MilliCPUs, 0) + 999) / 1000
	if vcpus > int64(h.MaxVCPUs) {
		return Pod{}, fmt.Errorf("%w: the pod's containers may use %d CPUs, and a VM of this node has at most %d: "+
			"lower their limits and requests or raise hypervisor.max_vcpus", errdefs.ErrInvalidArgument, vcpus, h.MaxVCPUs)
	}
	pod.VCPUs = max(pod.VCPUs, uint32(vcpus))
	memory := int64(pod.MemoryMiB) + int64(mebibytes(demand.MemoryBytes))
	if memory > int64(h.MaxMemoryMiB) {
		return Pod{}, fmt.Errorf("%w: the pod needs %d MiB (%d for the guest and its images, the rest are its containers' "+
			"limits), and a VM of this node has at most %d: lower the limits or raise hypervisor.max_memory_mib",
			errdefs.ErrInvalidArgument, memory, pod.MemoryMiB, h.MaxMemoryMiB)
	}
	pod.MemoryMiB = uint32(memory)
	return pod, nil
}

// Holds tells whether a running VM of this size has room for a changed demand: its size is fixed. It fails with
// errdefs.ErrFailedPrecondition.
func (p Pod) Holds(demand Demand) error {
	if have := int64(p.VCPUs) * 1000; demand.MilliCPUs > have {
		return fmt.Errorf("%w: %d.%03d CPUs are asked for, the pod's VM has %d and keeps its size: create the pod anew with these "+
			"limits", errdefs.ErrFailedPrecondition, demand.MilliCPUs/1000, demand.MilliCPUs%1000, p.VCPUs)
	}
	if need := mebibytes(demand.MemoryBytes); need > p.MemoryMiB {
		return fmt.Errorf("%w: %d MiB of memory are asked for, the pod's VM has %d and keeps its size: create the pod anew with "+
			"these limits", errdefs.ErrFailedPrecondition, need, p.MemoryMiB)
	}
	return nil
}

// mebibytes rounds up. What is beyond any machine stays so.
func mebibytes(bytes int64) uint32 {
	const mebibyte = 1 << 20
	whole := max(bytes, 0) / mebibyte
	if whole*mebibyte < bytes {
		whole++
	}
	return uint32(min(whole, maxMemoryMiB+1))
}
