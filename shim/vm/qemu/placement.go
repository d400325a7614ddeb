package qemu

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/shim/vm"
)

// nodeDir has a directory for each NUMA node of the host.
const nodeDir = "/sys/devices/system/node"

// processors are those of the placement's nodes that the shim itself may run on; nil when it binds to none. Nodes that the
// host lacks, or whose processors are all forbidden, are errdefs.ErrFailedPrecondition.
func processors(placement vm.Placement) (*unix.CPUSet, error) {
	if len(placement.Nodes) == 0 {
		return nil, nil
	}
	var allowed unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		return nil, fmt.Errorf("read allowed processors: %w", err)
	}
	var set unix.CPUSet
	for _, node := range placement.Nodes {
		raw, err := os.ReadFile(fmt.Sprintf("%s/node%d/cpulist", nodeDir, node))
		if err != nil {
			return nil, fmt.Errorf("%w: NUMA node %d (hypervisor.numa_nodes): %w", errdefs.ErrFailedPrecondition, node, err)
		}
		if err := addProcessors(&set, &allowed, string(raw)); err != nil {
			return nil, fmt.Errorf("processors of NUMA node %d: %w", node, err)
		}
	}
	if set.Count() == 0 {
		return nil, fmt.Errorf("%w: no processor of NUMA nodes %v may be used by the shim (its cpuset forbids them)",
			errdefs.ErrFailedPrecondition, placement.Nodes)
	}
	return &set, nil
}

// addProcessors reads a list such as "0-3,8" and adds those that are allowed.
func addProcessors(to, allowed *unix.CPUSet, list string) error {
	for part := range strings.SplitSeq(strings.TrimSpace(list), ",") {
		if part == "" {
			continue // a node of memory alone
		}
		low, high, isRange := strings.Cut(part, "-")
		if !isRange {
			high = low
		}
		first, err := strconv.Atoi(low)
		if err != nil {
			return fmt.Errorf("%q: %w", part, err)
		}
		last, err := strconv.Atoi(high)
		if err != nil {
			return fmt.Errorf("%q: %w", part, err)
		}
		for cpu := first; cpu <= last; cpu++ {
			if allowed.IsSet(cpu) {
				to.Set(cpu)
			}
		}
	}
	return nil
}
