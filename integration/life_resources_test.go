package integration

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/task"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coffer-project/coffer/integration/harness"
)

const mebibyte = 1 << 20

// memoryLimit gives a container that much memory.
func memoryLimit(bytes int64) func(*runtime.ContainerConfig) {
	return func(config *runtime.ContainerConfig) { config.Linux.Resources.MemoryLimitInBytes = bytes }
}

// lifeStats makes a container use processor and memory and finds both in its figures and in the pod's.
func lifeStats(t *testing.T, l *lab) {
	c := l.sleeper(t, memoryLimit(64*mebibyte))
	before := l.stats(t, c)
	l.sh(t, c, "dd if=/dev/zero of=/dev/shm/ballast bs=1M count=20 2>/dev/null; dd if=/dev/zero bs=1M count=4 2>/dev/null | sha256sum")
	after := l.stats(t, c)
	if cpu := after.Cpu.UsageCoreNanoSeconds.Value - before.Cpu.UsageCoreNanoSeconds.Value; cpu < 1e6 || cpu > 600e9 {
		t.Errorf("hashing took %d ns of processor time", cpu)
	}
	if grown := int64(after.Memory.WorkingSetBytes.Value) - int64(before.Memory.WorkingSetBytes.Value); grown < 16*mebibyte || grown > 40*mebibyte {
		t.Errorf("the working set grew by %d bytes, want about 20 MiB", grown)
	}
	if available := after.Memory.AvailableBytes.Value; available == 0 || available > 48*mebibyte {
		t.Errorf("%d bytes of 64 MiB are available, with 20 MiB in use", available)
	}
	resp, err := l.node.CRI.Runtime.PodSandboxStats(l.ctx(t), &runtime.PodSandboxStatsRequest{PodSandboxId: l.pod.ID})
	if err != nil {
		t.Fatal(err)
	}
	pod := resp.Stats.Linux
	if pod.Cpu.UsageCoreNanoSeconds.Value < after.Cpu.UsageCoreNanoSeconds.Value || pod.Memory.WorkingSetBytes.Value < 16*mebibyte {
		t.Errorf("the pod used less than its container: %v, %v", pod.Cpu, pod.Memory)
	}
	if pod.Process.ProcessCount.Value == 0 {
		t.Error("the pod has no processes")
	}
	if network := pod.Network.GetDefaultInterface(); network.GetName() != "eth0" || network.GetRxBytes().GetValue() == 0 || network.GetTxBytes().GetValue() == 0 {
		t.Errorf("network figures of a pod that pulled an image: %v", network)
	}
}

func (l *lab) stats(t *testing.T, c *harness.Container) *runtime.ContainerStats {
	t.Helper()
	resp, err := l.node.CRI.Runtime.ContainerStats(l.ctx(t), &runtime.ContainerStatsRequest{ContainerId: c.ID})
	if err != nil {
		t.Fatal(err)
	}
	return resp.Stats
}

// lifeUpdate changes the limits of a running container and reads them inside.
func lifeUpdate(t *testing.T, l *lab) {
	c := l.sleeper(t, memoryLimit(64*mebibyte))
	limits := func() string { return l.sh(t, c, "cd /sys/fs/cgroup && cat memory.max cpu.max") }
	if got := limits(); got != fmt.Sprintf("%d\nmax 100000", 64*mebibyte) {
		t.Errorf("limits at first: %q", got)
	}
	_, err := l.node.CRI.Runtime.UpdateContainerResources(l.ctx(t), &runtime.UpdateContainerResourcesRequest{
		ContainerId: c.ID,
		Linux:       &runtime.LinuxContainerResources{MemoryLimitInBytes: 96 * mebibyte, CpuQuota: 50000, CpuPeriod: 100000},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := limits(); got != fmt.Sprintf("%d\n50000 100000", 96*mebibyte) {
		t.Errorf("limits after the update: %q", got)
	}
	c = l.create(t, memoryLimit(64*mebibyte), "/bin/sleep", "100000")
	_, err = l.node.CRI.Runtime.UpdateContainerResources(l.ctx(t), &runtime.UpdateContainerResourcesRequest{
		ContainerId: c.ID, Linux: &runtime.LinuxContainerResources{MemoryLimitInBytes: 48 * mebibyte},
	})
	if err == nil {
		err = c.Start(l.ctx(t))
	}
	if err != nil {
		t.Fatal(err)
	}
	if got := limits(); got != fmt.Sprintf("%d\nmax 100000", 48*mebibyte) {
		t.Errorf("limits after an update before the start: %q", got)
	}
}

// lifeOOM lets a container run out of its memory.
func lifeOOM(t *testing.T, l *lab) {
	bystander := l.sleeper(t, nil)
	c := l.start(t, memoryLimit(16*mebibyte), "/bin/busybox", "tail", "/dev/zero")
	if status := l.wait(t, c); status.ExitCode != 137 {
		t.Errorf("exit status %d, want 137", status.ExitCode)
	}
	// containerd learns the reason from an event that may come after the exit.
	err := harness.Eventually(l.ctx(t), func(ctx context.Context) error {
		status, err := c.Wait(ctx)
		if err == nil && status.Reason != "OOMKilled" {
			err = fmt.Errorf("reason %q, want OOMKilled", status.Reason)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	l.sh(t, bystander, "true")
}

// lifePause freezes a container by containerd's task API, which CRI does not reach, and asks for its processes there.
func lifePause(t *testing.T, l *lab) {
	const counting = "n=0; echo 0 > /dev/shm/count; echo ready; while :; do n=$((n+1)); echo $n > /dev/shm/count; done"
	c, witness := l.start(t, nil, "/bin/sh", "-c", counting), l.sleeper(t, nil)
	l.says(t, c, "ready")
	api := l.node.CRI.Tasks()
	ctx := harness.TaskContext(l.ctx(t))
	report, err := l.pod.Report(ctx)
	if err != nil {
		t.Fatal(err)
	}
	pids, err := api.ListPids(ctx, &tasks.ListPidsRequest{ContainerID: c.ID})
	if err != nil || len(pids.Processes) != 1 || pids.Processes[0].Pid != report.VMPID {
		t.Errorf("processes %v, %v; want the VM's, %d", pids, err, report.VMPID)
	}

	if _, err := api.Pause(ctx, &tasks.PauseTaskRequest{ContainerID: c.ID}); err != nil {
		t.Fatal(err)
	}
	if got, err := api.Get(ctx, &tasks.GetRequest{ContainerID: c.ID}); err != nil || got.Process.Status != task.Status_PAUSED {
		t.Errorf("paused container is %v, %v", got, err)
	}
	// The exec in between gives the counter all the time it would need.
	count := func() string { return l.sh(t, witness, "cat /dev/shm/count") }
	frozen := count()
	if again := count(); again != frozen {
		t.Errorf("the container went on from %s to %s while it was paused", frozen, again)
	}
	if _, err := c.ExecSync(l.ctx(t), "/bin/true"); err == nil || !strings.Contains(err.Error(), "paused") {
		t.Errorf("exec in a paused container: %v", err)
	}
	if _, err := api.Pause(ctx, &tasks.PauseTaskRequest{ContainerID: c.ID}); err == nil {
		t.Error("paused twice")
	}
	if _, err := api.Resume(ctx, &tasks.ResumeTaskRequest{ContainerID: c.ID}); err != nil {
		t.Fatal(err)
	}
	err = harness.Eventually(ctx, func(context.Context) error {
		if count() == frozen {
			return errors.New("the container does not go on")
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
