package task

import (
	"context"
	"fmt"

	cgroupstats "github.com/containerd/cgroups/v3/cgroup2/stats"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/typeurl/v2"

	agentpb "github.com/coffer-project/coffer/proto/agent"
)

// Stats reports a container's figures as those of a control group v2. It fails with errdefs.ErrNotFound when the
// container has stopped.
func (s *Service) Stats(ctx context.Context, r *taskapi.StatsRequest) (*taskapi.StatsResponse, error) {
	c, err := s.container(r.GetID())
	if err != nil {
		return nil, err
	}
	metrics := new(cgroupstats.Metrics)
	if c.kind != kindPause {
		if metrics, err = s.stats(ctx, c); err != nil {
			return nil, fmt.Errorf("stats of container %s: %w", c.id, err)
		}
	}
	encoded, err := typeurl.MarshalAnyToProto(metrics)
	if err != nil {
		return nil, fmt.Errorf("encode stats of container %s: %w", c.id, err)
	}
	return &taskapi.StatsResponse{Stats: encoded}, nil
}

// Metrics implements sandbox.Members.
func (s *Service) Metrics(ctx context.Context) []*cgroupstats.Metrics {
	var all []*cgroupstats.Metrics
	for _, c := range s.all() {
		if c.kind == kindPause {
			continue
		}
		metrics, err := s.stats(ctx, c)
		if err != nil {
			if !errdefs.IsNotFound(err) {
				log.G(ctx).WithError(err).WithField("container", c.id).Warn("container gives no stats")
			}
			continue
		}
		all = append(all, metrics)
	}
	return all
}

func (s *Service) stats(ctx context.Context, c *container) (*cgroupstats.Metrics, error) {
	if state, _ := c.init.current(); state == stateStopped {
		return nil, fmt.Errorf("it has exited: %w", errdefs.ErrNotFound)
	}
	guest, err := c.inGuest()
	if err != nil {
		return nil, err
	}
	stats, err := guest.StatsContainer(ctx, &agentpb.StatsContainerRequest{ContainerId: c.id})
	if err != nil {
		return nil, err
	}
	return cgroupMetrics(stats), nil
}

// cgroupMetrics translates the agent's figures. The agent counts time in nanoseconds, a control group in microseconds.
func cgroupMetrics(stats *agentpb.StatsContainerResponse) *cgroupstats.Metrics {
	group := stats.GetCgroupStats()
	usage, throttled := group.GetCpuStats().GetCpuUsage(), group.GetCpuStats().GetThrottlingData()
	metrics := &cgroupstats.Metrics{
		Pids: &cgroupstats.PidsStat{Current: group.GetPidsStats().GetCurrent(), Limit: group.GetPidsStats().GetLimit()},
		CPU: &cgroupstats.CPUStat{
			UsageUsec: usage.GetTotalUsage() / 1000, UserUsec: usage.GetUsageInUsermode() / 1000,
			SystemUsec: usage.GetUsageInKernelmode() / 1000, NrPeriods: throttled.GetPeriods(),
			NrThrottled: throttled.GetThrottledPeriods(), ThrottledUsec: throttled.GetThrottledTime() / 1000,
		},
		Memory:       memoryMetrics(group.GetMemoryStats()),
		MemoryEvents: &cgroupstats.MemoryEvents{},
		Io:           ioMetrics(group.GetBlkioStats()),
	}
	for size, huge := range group.GetHugetlbStats() {
		metrics.Hugetlb = append(metrics.Hugetlb, &cgroupstats.HugeTlbStat{
			Current: huge.GetUsage(), Max: huge.GetMaxUsage(), Pagesize: size,
		})
	}
	for _, network := range stats.GetNetworkStats() {
		metrics.Network = append(metrics.Network, &cgroupstats.NetworkStat{
			Name: network.GetName(), RxBytes: network.GetRxBytes(), RxPackets: network.GetRxPackets(),
			RxErrors: network.GetRxErrors(), RxDropped: network.GetRxDropped(), TxBytes: network.GetTxBytes(),
			TxPackets: network.GetTxPackets(), TxErrors: network.GetTxErrors(), TxDropped: network.GetTxDropped(),
		})
	}
	return metrics
}

// memoryMetrics reads the details from the agent's map, whose keys are those of the kernel's memory.stat.
func memoryMetrics(memory *agentpb.MemoryStats) *cgroupstats.MemoryStat {
	detail := memory.GetStats()
	return &cgroupstats.MemoryStat{
		Usage: memory.GetUsage().GetUsage(), UsageLimit: memory.GetUsage().GetLimit(), MaxUsage: memory.GetUsage().GetMaxUsage(),
		SwapUsage: memory.GetSwapUsage().GetUsage(), SwapLimit: memory.GetSwapUsage().GetLimit(),
		Anon: detail["anon"], File: max(detail["file"], memory.GetCache()), KernelStack: detail["kernel_stack"],
		Slab: detail["slab"], Sock: detail["sock"], Shmem: detail["shmem"], FileMapped: detail["file_mapped"],
		FileDirty: detail["file_dirty"], FileWriteback: detail["file_writeback"],
		InactiveAnon: detail["inactive_anon"], ActiveAnon: detail["active_anon"],
		InactiveFile: detail["inactive_file"], ActiveFile: detail["active_file"],
		Pgfault: detail["pgfault"], Pgmajfault: detail["pgmajfault"],
	}
}

func ioMetrics(blkio *agentpb.BlkioStats) *cgroupstats.IOStat {
	type device struct{ major, minor uint64 }
	entries := map[device]*cgroupstats.IOEntry{}
	io := &cgroupstats.IOStat{}
	entry := func(e *agentpb.BlkioStatsEntry) *cgroupstats.IOEntry {
		key := device{e.GetMajor(), e.GetMinor()}
		if entries[key] == nil {
			entries[key] = &cgroupstats.IOEntry{Major: key.major, Minor: key.minor}
			io.Usage = append(io.Usage, entries[key])
		}
		return entries[key]
	}
	for _, e := range blkio.GetIoServiceBytesRecursive() {
		switch e.GetOp() {
		case "read", "Read", "rbytes":
			entry(e).Rbytes = e.GetValue()
		case "write", "Write", "wbytes":
			entry(e).Wbytes = e.GetValue()
		}
	}
	for _, e := range blkio.GetIoServicedRecursive() {
		switch e.GetOp() {
		case "read", "Read", "rios":
			entry(e).Rios = e.GetValue()
		case "write", "Write", "wios":
			entry(e).Wios = e.GetValue()
		}
	}
	return io
}
