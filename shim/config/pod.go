package config

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// AnnotationPrefix begins every annotation that speaks to a Kata-style runtime. Those that Pod does not know are
// refused: a pod that asks for something and does not get it must not start.
const AnnotationPrefix = "io.katacontainers.config."

const hypervisorPrefix = AnnotationPrefix + "hypervisor."

// The annotations that a pod may carry.
const (
	AnnotationVCPUs    = hypervisorPrefix + nameVCPUs
	AnnotationMemory   = hypervisorPrefix + nameMemory
	AnnotationScratch  = hypervisorPrefix + nameScratch
	AnnotationInitdata = hypervisorPrefix + "cc_init_data"
)

// The names by which enable_annotations allows annotations.
const (
	nameVCPUs   = "default_vcpus"
	nameMemory  = "default_memory"
	nameScratch = "scratch_mib" // Coffer's own
)

// Pod is what one pod gets after its annotations were heard.
type Pod struct {
	VCPUs     uint32
	MemoryMiB uint32
	// ScratchMiB is the size of the scratch disk, 0 for none.
	ScratchMiB uint32
	// InitdataAnnotation is the pod's own document, still encoded; empty when the default document holds.
	InitdataAnnotation string
}

// Pod applies the annotations of a pod, and sizes its VM by them and by what its containers may use. It fails with
// errdefs.ErrInvalidArgument, naming the annotation, when one is malformed, not allowed, beyond the file's limits, or
// begins with AnnotationPrefix and is not known, and when the pod needs more than those limits.
func (c *Config) Pod(annotations map[string]string, demand Demand) (Pod, error) {
	pod := Pod{VCPUs: c.Hypervisor.DefaultVCPUs, MemoryMiB: c.Hypervisor.DefaultMemoryMiB, ScratchMiB: c.Scratch.DefaultMiB}
	if c.Hypervisor.SizeFromLimits {
		pod.MemoryMiB = max(pod.MemoryMiB, mebibytes(demand.OverheadBytes))
	}
	for _, key := range slices.Sorted(maps.Keys(annotations)) {
		if !strings.HasPrefix(key, AnnotationPrefix) {
			continue
		}
		value, err := annotations[key], error(nil)
		switch key {
		case AnnotationVCPUs:
			pod.VCPUs, err = c.sizeAnnotation(key, value, 1, c.Hypervisor.MaxVCPUs)
		case AnnotationMemory:
			pod.MemoryMiB, err = c.sizeAnnotation(key, value, minMemoryMiB, c.Hypervisor.MaxMemoryMiB)
		case AnnotationScratch:
			pod.ScratchMiB, err = c.scratchAnnotation(key, value)
		case AnnotationInitdata:
			pod.InitdataAnnotation, err = value, c.checkInitdata(value)
		default:
			err = fmt.Errorf("%w: this runtime does not know it, remove it from the pod", errdefs.ErrInvalidArgument)
		}
		if err != nil {
			return Pod{}, fmt.Errorf("pod annotation %s: %w", key, err)
		}
	}
	if !c.Hypervisor.SizeFromLimits {
		return pod, nil
	}
	return c.Hypervisor.size(pod, demand)
}

// scratchAnnotation reads the size of the scratch disk; a pod may do without.
func (c *Config) scratchAnnotation(key, value string) (uint32, error) {
	low := uint32(minScratchMiB)
	if value == "0" {
		low = 0
	}
	return c.sizeAnnotation(key, value, low, c.Scratch.MaxMiB)
}

// sizeAnnotation reads an annotation that changes the size of the VM.
func (c *Config) sizeAnnotation(key, value string, low, high uint32) (uint32, error) {
	if name := strings.TrimPrefix(key, hypervisorPrefix); !slices.Contains(c.Hypervisor.EnableAnnotations, name) {
		return 0, fmt.Errorf("%w: the node's administrator does not allow it (hypervisor.enable_annotations)", errdefs.ErrInvalidArgument)
	}
	return parseBounded(value, low, high)
}

func (c *Config) checkInitdata(value string) error {
	if !c.Initdata.AllowAnnotation {
		return fmt.Errorf("%w: the node's administrator does not allow it (initdata.allow_annotation)", errdefs.ErrInvalidArgument)
	}
	if value == "" {
		return fmt.Errorf("%w: is empty", errdefs.ErrInvalidArgument)
	}
	return nil
}

func parseBounded(value string, low, high uint32) (uint32, error) {
	n, err := strconv.ParseUint(value, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%w: %q is no whole number", errdefs.ErrInvalidArgument, value)
	}
	if n < uint64(low) || n > uint64(high) {
		return 0, fmt.Errorf("%w: %d is not between %d and the node's limit of %d", errdefs.ErrInvalidArgument, n, low, high)
	}
	return uint32(n), nil
}
