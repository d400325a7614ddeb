package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"

	"github.com/coffer-project/coffer/integration/harness"
)

// describeMachine says on what the figures were measured. It is called while a pod runs.
func describeMachine(ctx context.Context, node *harness.Node, pod *harness.Pod, vmPID uint32) (machine, error) {
	m := machine{CPUs: runtime.NumCPU(), CPU: procField("/proc/cpuinfo", "model name")}
	out, err := exec.CommandContext(ctx, node.Tools.QEMU, "--version").Output()
	if err != nil {
		return m, fmt.Errorf("ask QEMU for its version: %w", err)
	}
	m.QEMU, _, _ = strings.Cut(string(out), "\n")
	if out, err = exec.CommandContext(ctx, "uname", "-sr").Output(); err != nil {
		return m, err
	}
	m.Kernel = strings.TrimSpace(string(out))

	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", vmPID))
	if err != nil {
		return m, fmt.Errorf("read the VM's command line: %w", err)
	}
	_, rest, _ := strings.Cut(string(args), "\x00-accel\x00")
	m.Accelerator, _, _ = strings.Cut(rest, "\x00")

	shim, err := node.ShimPID(pod)
	if err != nil {
		return m, err
	}
	kib, err := strconv.Atoi(strings.TrimSuffix(procField(fmt.Sprintf("/proc/%d/status", shim), "VmRSS"), " kB"))
	if err != nil {
		return m, fmt.Errorf("read the shim's memory: %w", err)
	}
	m.ShimRSSMiB = kib >> 10
	image, err := os.Stat(node.Tools.Initrd)
	if err != nil {
		return m, err
	}
	m.GuestMiB = int(image.Size() >> 20)
	return m, nil
}

// procField reads one "name : value" line of a file in /proc.
func procField(path, name string) string {
	content, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(content)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
