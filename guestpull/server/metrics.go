package server

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	agentpb "github.com/coffer-project/coffer/proto/agent"
)

// memFields are the lines of /proc/meminfo that are reported.
var memFields = map[string]string{
	"MemTotal":     "coffer_guest_memory_total_bytes",
	"MemFree":      "coffer_guest_memory_free_bytes",
	"MemAvailable": "coffer_guest_memory_available_bytes",
	"Shmem":        "coffer_guest_memory_shared_bytes",
}

// GetMetrics returns figures of the guest as a whole in Prometheus' text form.
func (s *service) GetMetrics(context.Context, *agentpb.GetMetricsRequest) (*agentpb.Metrics, error) {
	meminfo, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return nil, fmt.Errorf("read figures of the guest: %w", err)
	}
	loadavg, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return nil, fmt.Errorf("read figures of the guest: %w", err)
	}
	var out strings.Builder
	typed := map[string]bool{}
	gauge := func(name, value string) {
		if family, _, _ := strings.Cut(name, "{"); !typed[family] {
			typed[family] = true
			fmt.Fprintf(&out, "# TYPE %s gauge\n", family)
		}
		fmt.Fprintf(&out, "%s %s\n", name, value)
	}
	lines := bufio.NewScanner(bytes.NewReader(meminfo))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue
		}
		kib, err := strconv.ParseUint(fields[1], 10, 64)
		if name, ok := memFields[strings.TrimSuffix(fields[0], ":")]; ok && err == nil {
			gauge(name, strconv.FormatUint(kib<<10, 10))
		}
	}
	if fields := strings.Fields(string(loadavg)); len(fields) > 0 {
		gauge("coffer_guest_load1", fields[0])
	}
	gauge("coffer_guest_processors", strconv.Itoa(runtime.NumCPU()))
	gauge("coffer_agent_goroutines", strconv.Itoa(runtime.NumGoroutine()))
	if s.Figures != nil {
		s.Figures(gauge)
	}
	return &agentpb.Metrics{Metrics: out.String()}, nil
}
