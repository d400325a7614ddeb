package cgroup

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	agentpb "github.com/coffer-project/coffer/proto/agent"
)

const nsPerUs = 1000

// Stats returns the figures of the group at path: times in nanoseconds, sizes in bytes. Files that the kernel does not have count as
// zero. NotFound: there is no such group. NotImplemented: not a version 2 hierarchy.
func (r Root) Stats(path string) (*agentpb.CgroupStats, error) {
	if err := r.check(path); err != nil {
		return nil, err
	}
	files := &reader{dir: r.Dir(path)}
	out := &agentpb.CgroupStats{
		CpuStats:     cpu(files),
		MemoryStats:  memory(files),
		PidsStats:    &agentpb.PidsStats{Current: files.value("pids.current"), Limit: unlimited(files.value("pids.max"))},
		BlkioStats:   blkio(files),
		HugetlbStats: hugetlb(files),
	}
	if files.err != nil {
		return nil, fmt.Errorf("read figures of cgroup %s: %w", path, files.err)
	}
	return out, nil
}

func cpu(f *reader) *agentpb.CpuStats {
	t := f.table("cpu.stat")
	return &agentpb.CpuStats{
		CpuUsage: &agentpb.CpuUsage{
			TotalUsage:        t["usage_usec"] * nsPerUs,
			UsageInUsermode:   t["user_usec"] * nsPerUs,
			UsageInKernelmode: t["system_usec"] * nsPerUs,
		},
		ThrottlingData: &agentpb.ThrottlingData{
			Periods:          t["nr_periods"],
			ThrottledPeriods: t["nr_throttled"],
			ThrottledTime:    t["throttled_usec"] * nsPerUs,
		},
	}
}

func memory(f *reader) *agentpb.MemoryStats {
	stat, events, swap := f.table("memory.stat"), f.table("memory.events"), f.table("memory.swap.events")
	return &agentpb.MemoryStats{
		Cache: stat["file"],
		Usage: &agentpb.MemoryData{
			Usage:    f.value("memory.current"),
			MaxUsage: f.value("memory.peak"),
			Failcnt:  events["max"],
			Limit:    f.value("memory.max"),
		},
		SwapUsage: &agentpb.MemoryData{
			Usage:    f.value("memory.swap.current"),
			MaxUsage: f.value("memory.swap.peak"),
			Failcnt:  swap["max"],
			Limit:    f.value("memory.swap.max"),
		},
		KernelUsage:  &agentpb.MemoryData{Usage: stat["kernel"]},
		UseHierarchy: true,
		Stats:        stat,
	}
}

// unlimited: in this message no limit is a zero.
func unlimited(v uint64) uint64 {
	if v == 1<<64-1 {
		return 0
	}
	return v
}

// blkioFields are the keys of io.stat in the message's two lists.
var blkioFields = map[string]struct {
	op    string
	bytes bool
}{"rbytes": {"Read", true}, "wbytes": {"Write", true}, "dbytes": {"Discard", true},
	"rios": {"Read", false}, "wios": {"Write", false}, "dios": {"Discard", false}}

// blkio reads lines such as "254:0 rbytes=1 wbytes=2 rios=3 wios=4".
func blkio(f *reader) *agentpb.BlkioStats {
	out := &agentpb.BlkioStats{}
	for line := range strings.Lines(f.text("io.stat")) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		var major, minor uint64
		if _, err := fmt.Sscanf(fields[0], "%d:%d", &major, &minor); err != nil {
			continue
		}
		for _, pair := range fields[1:] {
			key, text, _ := strings.Cut(pair, "=")
			field, known := blkioFields[key]
			value, err := strconv.ParseUint(text, 10, 64)
			if !known || err != nil {
				continue
			}
			entry := &agentpb.BlkioStatsEntry{Major: major, Minor: minor, Op: field.op, Value: value}
			if field.bytes {
				out.IoServiceBytesRecursive = append(out.IoServiceBytesRecursive, entry)
			} else {
				out.IoServicedRecursive = append(out.IoServicedRecursive, entry)
			}
		}
	}
	return out
}

func hugetlb(f *reader) map[string]*agentpb.HugetlbStats {
	out := make(map[string]*agentpb.HugetlbStats)
	names, err := filepath.Glob(f.dir + "/hugetlb.*.current")
	if err != nil {
		return out
	}
	for _, name := range names {
		size := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(name), "hugetlb."), ".current")
		if strings.Contains(size, ".") {
			continue // reservation figures: hugetlb.2MB.rsvd.current
		}
		out[size] = &agentpb.HugetlbStats{
			Usage:   f.value("hugetlb." + size + ".current"),
			Failcnt: f.table("hugetlb." + size + ".events")["max"],
		}
	}
	return out
}
