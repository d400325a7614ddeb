package spec

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coffer-project/coffer/proto/lazyregexp"
	"github.com/coffer-project/coffer/proto/oci"
)

var pageSize = lazyregexp.New(`^[1-9][0-9]{0,5}[KMG]B$`)

// BuildResources rebuilds limits, for a new container or an update of a running one. A zero is "not set". CPU sets are dropped:
// they name the host's processors. The result is never nil and has no device rules.
func BuildResources(in *oci.LinuxResources) (*specs.LinuxResources, error) {
	out := &specs.LinuxResources{}
	if m := in.GetMemory(); m != nil {
		if m.GetLimit() < -1 || m.GetReservation() < -1 || m.GetSwap() < -1 || m.GetSwappiness() > 200 {
			return nil, refuse("memory limit out of range")
		}
		out.Memory = &specs.LinuxMemory{Limit: set(m.GetLimit()), Reservation: set(m.GetReservation()), Swap: set(m.GetSwap())}
	}
	if c := in.GetCPU(); c != nil {
		if c.GetQuota() < -1 {
			return nil, refuse("cpu quota out of range")
		}
		out.CPU = &specs.LinuxCPU{Shares: set(c.GetShares()), Quota: set(c.GetQuota()), Period: set(c.GetPeriod())}
	}
	if p := in.GetPids(); p.GetLimit() != 0 {
		limit := p.GetLimit()
		out.Pids = &specs.LinuxPids{Limit: &limit}
	}
	if weight := in.GetBlockIO().GetWeight(); weight != 0 {
		if weight < 10 || weight > 1000 {
			return nil, refuse("block i/o weight %d out of range", weight)
		}
		w := uint16(weight)
		out.BlockIO = &specs.LinuxBlockIO{Weight: &w}
	}
	if len(in.GetHugepageLimits()) > 16 {
		return nil, refuse("%d huge page limits: at most 16 are allowed", len(in.GetHugepageLimits()))
	}
	for _, h := range in.GetHugepageLimits() {
		if !pageSize.MatchString(h.GetPagesize()) {
			return nil, refuse("huge page size %.32q", h.GetPagesize())
		}
		// A limit of zero is what orchestrators send for a page size that the guest may not even have.
		if h.GetLimit() > 0 {
			out.HugepageLimits = append(out.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: h.GetPagesize(), Limit: h.GetLimit()})
		}
	}
	return out, nil
}

func set[T int64 | uint64](v T) *T {
	if v == 0 {
		return nil
	}
	return &v
}
