package qemu

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// BenchmarkBoot measures the test guest from New to its first answer, and QEMU's processor time and resident memory
// then. On a busy machine the processor time is the figure to compare.
func BenchmarkBoot(b *testing.B) {
	g := needGuest(b)
	for _, cpus := range []uint32{1, 2} {
		b.Run(fmt.Sprintf("cpus=%d", cpus), func(b *testing.B) {
			var ready, stopped time.Duration
			var resident int
			var processor time.Duration
			for b.Loop() {
				driver, err := NewDriver(Options{
					Binary: qemuBinary, Accelerator: TCG, Transport: Serial, Seccomp: true, ConsoleLines: 100, ShutdownGrace: 5 * time.Second,
				})
				if err != nil {
					b.Fatal(err)
				}
				config := g.config(b)
				config.VCPUs = cpus
				begin := time.Now()
				instance, err := driver.New(b.Context(), config)
				if err != nil {
					b.Fatal(err)
				}
				if err := instance.Start(b.Context()); err != nil {
					b.Fatal(err)
				}
				ctx, cancel := context.WithTimeout(b.Context(), patience)
				if _, err := ask(ctx, instance, "print up"); err != nil {
					b.Fatal(err)
				}
				cancel()
				ready += time.Since(begin)
				processor += processorTime(b, instance.PID())
				resident = max(resident, residentKiB(b, instance.PID()))
				begin = time.Now()
				if err := instance.Stop(b.Context()); err != nil {
					b.Fatal(err)
				}
				stopped += time.Since(begin)
			}
			b.ReportMetric(float64(ready.Milliseconds())/float64(b.N), "ms-to-answer")
			b.ReportMetric(float64(processor.Milliseconds())/float64(b.N), "cpu-ms-to-answer")
			b.ReportMetric(float64(stopped.Milliseconds())/float64(b.N), "ms-to-stop")
			b.ReportMetric(float64(resident)/1024, "MiB-resident")
		})
	}
}

func residentKiB(b *testing.B, pid int) int {
	b.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(raw), "VmRSS:")
	kib, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		b.Fatal(err)
	}
	return kib
}

// processorTime is what the process has used: fields 14 and 15 of /proc/pid/stat, in hundredths of a second.
func processorTime(b *testing.B, pid int) time.Duration {
	b.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	fields := strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+1:]))
	var ticks int
	for _, field := range fields[11:13] {
		n, err := strconv.Atoi(field)
		if err != nil {
			b.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}
