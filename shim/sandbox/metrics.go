package sandbox

import (
	"context"
	"fmt"

	cgroupstats "github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/anypb"
)

// metrics is the sum over the pod's containers, as the control group of a pod without a VM would show it. What the VM
// itself costs on the host is the process of its monitor, which the node's own tools see.
func (p *Pod) metrics(ctx context.Context) (*anypb.Any, error) {
	if _, err := p.Guest(); err != nil {
		return nil, err
	}
	sum := &cgroupstats.Metrics{
		Pids: &cgroupstats.PidsStat{}, CPU: &cgroupstats.CPUStat{}, Memory: &cgroupstats.MemoryStat{},
	}
	for _, m := range p.members.Metrics(ctx) {
		sum.Pids.Current += m.GetPids().GetCurrent()
		sum.CPU.UsageUsec += m.GetCPU().GetUsageUsec()
		sum.CPU.UserUsec += m.GetCPU().GetUserUsec()
		sum.CPU.SystemUsec += m.GetCPU().GetSystemUsec()
		sum.Memory.Usage += m.GetMemory().GetUsage()
		sum.Memory.InactiveFile += m.GetMemory().GetInactiveFile()
		sum.Memory.File += m.GetMemory().GetFile()
		sum.Memory.Anon += m.GetMemory().GetAnon()
		sum.Memory.Pgfault += m.GetMemory().GetPgfault()
		sum.Memory.Pgmajfault += m.GetMemory().GetPgmajfault()
	}
	encoded, err := typeurl.MarshalAnyToProto(sum)
	if err != nil {
		return nil, fmt.Errorf("encode pod metrics: %w", err)
	}
	return encoded, nil
}
