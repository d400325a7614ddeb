package task

import (
	"testing"

	cgroupstats "github.com/containerd/cgroups/v3/cgroup2/stats"
	"google.golang.org/protobuf/proto"

	agentpb "github.com/coffer-project/coffer/proto/agent"
)

func TestCgroupMetrics(t *testing.T) {
	got := cgroupMetrics(&agentpb.StatsContainerResponse{
		CgroupStats: &agentpb.CgroupStats{
			CpuStats: &agentpb.CpuStats{
				CpuUsage:       &agentpb.CpuUsage{TotalUsage: 3_000_000, UsageInUsermode: 2_000_000, UsageInKernelmode: 1_000_000},
				ThrottlingData: &agentpb.ThrottlingData{Periods: 5, ThrottledPeriods: 2, ThrottledTime: 7_000},
			},
			MemoryStats: &agentpb.MemoryStats{
				Usage: &agentpb.MemoryData{Usage: 4096, MaxUsage: 8192, Limit: 1 << 20},
				Stats: map[string]uint64{"anon": 1, "file": 2, "inactive_file": 3, "pgfault": 4, "pgmajfault": 5, "unknown": 6},
			},
			PidsStats: &agentpb.PidsStats{Current: 9, Limit: 100},
			BlkioStats: &agentpb.BlkioStats{
				IoServiceBytesRecursive: []*agentpb.BlkioStatsEntry{
					{Major: 8, Op: "read", Value: 10}, {Major: 8, Op: "write", Value: 20}, {Major: 9, Op: "read", Value: 30},
				},
				IoServicedRecursive: []*agentpb.BlkioStatsEntry{{Major: 8, Op: "read", Value: 1}, {Major: 8, Op: "write", Value: 2}},
			},
		},
		NetworkStats: []*agentpb.NetworkStats{{Name: "eth0", RxBytes: 11, TxBytes: 12}},
	})
	want := &cgroupstats.Metrics{
		Pids: &cgroupstats.PidsStat{Current: 9, Limit: 100},
		CPU: &cgroupstats.CPUStat{
			UsageUsec: 3000, UserUsec: 2000, SystemUsec: 1000, NrPeriods: 5, NrThrottled: 2, ThrottledUsec: 7,
		},
		Memory: &cgroupstats.MemoryStat{
			Usage: 4096, UsageLimit: 1 << 20, MaxUsage: 8192, Anon: 1, File: 2, InactiveFile: 3, Pgfault: 4, Pgmajfault: 5,
		},
		MemoryEvents: &cgroupstats.MemoryEvents{},
		Io: &cgroupstats.IOStat{Usage: []*cgroupstats.IOEntry{
			{Major: 8, Rbytes: 10, Wbytes: 20, Rios: 1, Wios: 2}, {Major: 9, Rbytes: 30},
		}},
		Network: []*cgroupstats.NetworkStat{{Name: "eth0", RxBytes: 11, TxBytes: 12}},
	}
	if !proto.Equal(got, want) {
		t.Errorf("metrics are\n%v\nwant\n%v", got, want)
	}
	// A guest without figures is no reason to fall over.
	if empty := cgroupMetrics(nil); empty.GetMemory().GetUsage() != 0 {
		t.Errorf("no figures became %v", empty)
	}
}
