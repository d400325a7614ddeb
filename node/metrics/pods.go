package metrics

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/log"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/coffer-project/coffer/node/pods"
)

const (
	namespace = "coffer"
	// scrapeLimit bounds what one scrape asks of the node.
	scrapeLimit = 8 * time.Second
	// ticksPerSecond is USER_HZ, which the kernel promises to programs on every architecture that Go runs on.
	ticksPerSecond = 100
)

// states are always there, so that an alert on one has something to look at.
var states = []string{"creating", "created", "starting", "running", "stopping", "stopped", "invalid", "unknown", "orphan"}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName(namespace, "", name), help, labels, nil)
}

var (
	podLabels = []string{"namespace", "pod", "sandbox"}

	descPods      = desc("pods", "Pods of this node by state; orphan: the shim was killed and what it held is not released.", "state")
	descPulling   = desc("pulls_in_progress", "Containers whose images are being pulled in guests.")
	descPullRate  = desc("pulls_fetching_bytes_per_second", "Bytes of layers per second that guests fetch now, all pulls together.")
	descVMMemory  = desc("vm_memory_bytes", "Memory that the pod's VM was given.", podLabels...)
	descVMRSS     = desc("vm_resident_memory_bytes", "Memory that the pod's VM occupies on this host.", podLabels...)
	descVMCPUs    = desc("vm_vcpus", "Virtual processors of the pod's VM.", podLabels...)
	descVMCPU     = desc("vm_cpu_seconds_total", "Processor time that the pod's VM has used on this host.", podLabels...)
	descShimRSS   = desc("shim_resident_memory_bytes", "Memory that the pod's shim occupies on this host.", podLabels...)
	descStartTime = desc("pod_start_time_seconds", "When the pod was asked for, in Unix time.", podLabels...)
)

// Pods collects the figures of the pods that there are. It implements prometheus.Collector.
type Pods struct {
	// List finds the pods; pods.List of the node's state directories.
	List func(ctx context.Context) ([]pods.Pod, error)
	// ReadFile reads from /proc; os.ReadFile.
	ReadFile func(path string) ([]byte, error)
}

// Describe implements prometheus.Collector.
func (Pods) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descPods, descPulling, descPullRate, descVMMemory, descVMRSS, descVMCPUs, descVMCPU, descShimRSS, descStartTime} {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (p Pods) Collect(to chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeLimit) // Prometheus gives a collector no context
	defer cancel()
	found, err := p.List(ctx)
	if err != nil {
		log.G(ctx).WithError(err).Warn("pods not collected")
		to <- prometheus.NewInvalidMetric(descPods, err)
		return
	}
	counts, pulling, rate := map[string]int{}, 0, 0.0
	for _, state := range states {
		counts[state] = 0
	}
	for i := range found {
		pod := &found[i]
		counts[pod.State()]++
		if pod.Report != nil {
			for _, c := range pod.Report.Containers {
				if c.Progress != nil {
					pulling++
					rate += float64(c.Progress.BytesPerSecond)
				}
			}
			p.collect(to, pod)
		}
	}
	for state, count := range counts {
		to <- prometheus.MustNewConstMetric(descPods, prometheus.GaugeValue, float64(count), state)
	}
	to <- prometheus.MustNewConstMetric(descPulling, prometheus.GaugeValue, float64(pulling))
	to <- prometheus.MustNewConstMetric(descPullRate, prometheus.GaugeValue, rate)
}

// collect sends one pod's figures; those of processes that have ended meanwhile are left out.
func (p Pods) collect(to chan<- prometheus.Metric, pod *pods.Pod) {
	send := func(d *prometheus.Desc, kind prometheus.ValueType, value float64) {
		to <- prometheus.MustNewConstMetric(d, kind, value, pod.PodNamespace, pod.PodName, pod.ID)
	}
	report := pod.Report
	send(descVMMemory, prometheus.GaugeValue, float64(report.MemoryMiB)*(1<<20))
	send(descVMCPUs, prometheus.GaugeValue, float64(report.VCPUs))
	send(descStartTime, prometheus.GaugeValue, float64(pod.CreatedAt.UnixMilli())/1000)
	if vm, err := p.process(int(report.VMPID)); err == nil {
		send(descVMRSS, prometheus.GaugeValue, vm.rss)
		send(descVMCPU, prometheus.CounterValue, vm.cpu)
	}
	if shim, err := p.process(pod.ShimPID); err == nil {
		send(descShimRSS, prometheus.GaugeValue, shim.rss)
	}
}

// usage is what a process takes: bytes, and seconds of processor time.
type usage struct{ rss, cpu float64 }

// process reads fields 14 (utime), 15 (stime) and 24 (rss, in pages) of /proc/PID/stat; see proc_pid_stat(5). The second
// field is the program's name in parentheses, which may hold anything, so counting starts after the last one.
func (p Pods) process(pid int) (usage, error) {
	if pid <= 0 {
		return usage{}, os.ErrNotExist
	}
	raw, err := p.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return usage{}, err
	}
	text := string(raw)
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(fields) < 22 {
		return usage{}, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	var numbers [3]uint64
	for i, field := range []string{fields[11], fields[12], fields[21]} {
		if numbers[i], err = strconv.ParseUint(field, 10, 64); err != nil {
			return usage{}, fmt.Errorf("/proc/%d/stat: %w", pid, err)
		}
	}
	return usage{cpu: float64(numbers[0]+numbers[1]) / ticksPerSecond, rss: float64(numbers[2]) * float64(os.Getpagesize())}, nil
}
