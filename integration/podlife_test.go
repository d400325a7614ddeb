package integration

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coffer-project/coffer/integration/harness"
)

// podsAtOnce must come up together, on as few as two processors.
const podsAtOnce = 4

// TestPodsAtOnce starts several pods together and fills one of them with containers, all at the same time.
func TestPodsAtOnce(t *testing.T) {
	node := sharedNode(t)
	images := []string{encryptedImage(t, node), encryptedImage(t, node)}
	annotations, err := node.PodAnnotations(harness.Guest{})
	if err != nil {
		t.Fatal(err)
	}
	labs := make([]*lab, podsAtOnce)
	together(t, podsAtOnce, func(i int) error {
		config := node.CRI.PodConfig(fmt.Sprintf("at-once-%d", i), annotations)
		config.Linux.Resources = &runtime.LinuxContainerResources{CpuPeriod: 100_000, CpuQuota: 150_000, MemoryLimitInBytes: 96 * mebibyte}
		l := &lab{node: node, image: images[0]}
		var err error
		if l.pod, err = node.CRI.RunPod(t.Context(), "coffer", config); err == nil {
			labs[i] = l
		}
		return err
	})
	for _, l := range labs {
		if l != nil {
			t.Cleanup(func() { l.remove(t) })
		}
	}
	if t.Failed() {
		return
	}
	first := labs[0]
	t.Run("containers at once", func(t *testing.T) { testContainersAtOnce(t, first, images) })
	t.Run("size", func(t *testing.T) { testSizedPod(t, first) })
	t.Run("init and sidecar", func(t *testing.T) { testInitContainers(t, first) })
	t.Run("shim memory", func(t *testing.T) {
		for i, l := range labs {
			used := shimUsage(t, l)
			t.Logf("pod %d: %+v", i, used)
			if used.residentKiB > shimMemoryLimit {
				t.Errorf("the shim of pod %d has %d KiB of resident memory, the limit is %d", i, used.residentKiB, shimMemoryLimit)
			}
		}
	})
}

// together runs n calls at the same time and reports their errors.
func together(t *testing.T, n int, call func(i int) error) {
	t.Helper()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if err := call(i); err != nil {
				t.Errorf("%d: %v", i, err)
			}
		})
	}
	wg.Wait()
}

// testContainersAtOnce pulls two images for four containers of a pod at the same time.
func testContainersAtOnce(t *testing.T, l *lab, images []string) {
	together(t, len(images), func(i int) error { return l.pod.Pull(l.ctx(t), images[i]) })
	together(t, 4, func(i int) error {
		c, err := l.pod.Create(l.ctx(t), fmt.Sprintf("at-once-%d", i), images[i%2], "/bin/echo", fmt.Sprint("container ", i))
		if err != nil {
			return err
		}
		output, err := c.Run(l.ctx(t))
		if err == nil && output != fmt.Sprintf("container %d\n", i) {
			err = fmt.Errorf("output %q", output)
		}
		return err
	})
}

// testSizedPod finds the pod's limits in its VM's size, and asks for more than that.
func testSizedPod(t *testing.T, l *lab) {
	report, err := l.pod.Report(l.ctx(t))
	if err != nil {
		t.Fatal(err)
	}
	if report.VCPUs != 2 || report.MemoryMiB != 512+96 {
		t.Errorf("the VM has %d CPUs and %d MiB, want 2 and 608", report.VCPUs, report.MemoryMiB)
	}
	c := l.sleeper(t, nil)
	if got := l.sh(t, c, "busybox nproc"); got != "2" {
		t.Errorf("the container sees %s processors, want 2", got)
	}
	update := func(limits *runtime.LinuxContainerResources) error {
		_, err := l.node.CRI.Runtime.UpdateContainerResources(l.ctx(t), &runtime.UpdateContainerResourcesRequest{ContainerId: c.ID, Linux: limits})
		return err
	}
	if err := update(&runtime.LinuxContainerResources{MemoryLimitInBytes: 600 * mebibyte, CpuQuota: 200_000, CpuPeriod: 100_000}); err != nil {
		t.Errorf("limits that the VM holds: %v", err)
	}
	for _, limits := range []*runtime.LinuxContainerResources{{MemoryLimitInBytes: 609 * mebibyte}, {CpuQuota: 300_000, CpuPeriod: 100_000}} {
		if err := update(limits); err == nil || !strings.Contains(err.Error(), "keeps its size") {
			t.Errorf("limits %v beyond the VM: %v", limits, err)
		}
	}
	for memory, fits := range map[int64]bool{600 * mebibyte: true, 700 * mebibyte: false} {
		_, err := l.node.CRI.Runtime.UpdatePodSandboxResources(l.ctx(t), &runtime.UpdatePodSandboxResourcesRequest{
			PodSandboxId: l.pod.ID, Resources: &runtime.LinuxContainerResources{MemoryLimitInBytes: memory},
		})
		if (err == nil) != fits || err != nil && !strings.Contains(err.Error(), "keeps its size") {
			t.Errorf("a pod that is to use %d bytes: %v", memory, err)
		}
	}
}

// testInitContainers starts containers as the kubelet does for a pod with a sidecar and an init container: the sidecar runs
// on while the init container comes and goes, and serves the main one.
func testInitContainers(t *testing.T, l *lab) {
	sidecar := l.start(t, nil, "/bin/sh", "-c", "while :; do echo sidecar | busybox nc -l -p 7000; done")
	setup := l.start(t, nil, "/bin/sh", "-c", "echo done > /dev/shm/setup")
	if status := l.wait(t, setup); status.ExitCode != 0 {
		t.Fatalf("the init container's exit status is %d", status.ExitCode)
	}
	l.removeContainer(t, setup)
	script := "cat /dev/shm/setup; for i in $(seq 100); do busybox nc 127.0.0.1 7000 </dev/null && exit; sleep 0.1; done; exit 1"
	main := l.start(t, nil, "/bin/sh", "-c", script)
	if status := l.wait(t, main); status.ExitCode != 0 {
		t.Errorf("the main container's exit status is %d", status.ExitCode)
	}
	if output, err := main.Output(); err != nil || !strings.HasPrefix(output, "done\nsidecar\n") {
		t.Errorf("the main container says %q, %v", output, err)
	}
	l.removeContainer(t, sidecar)
}
