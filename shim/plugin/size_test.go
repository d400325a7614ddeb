package plugin

import (
	"encoding/json"
	"testing"

	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestPauseTaskSize sizes the VM of a pod of containerd's own sandboxes, which tell the containers' sum by annotations.
func TestPauseTaskSize(t *testing.T) {
	h := newHarness(t)
	must(t, h.create(podID, stdioPaths{}, map[string]string{
		typeKey: "sandbox", sandboxKey: podID, "io.kubernetes.cri.sandbox-cpu-quota": "250000",
		"io.kubernetes.cri.sandbox-cpu-period": "100000", "io.kubernetes.cri.sandbox-memory": "134217728",
	}))
	if vm := h.vm().Config; vm.VCPUs != 3 || vm.MemoryMiB != 2048+128 {
		t.Errorf("the VM has %d CPUs and %d MiB, want 3 and 2176", vm.VCPUs, vm.MemoryMiB)
	}
	must(t, h.start(podID, ""))
	must(t, h.kill(podID, "", 9))
	h.wait(podID, "")
	must(t, h.delete(podID, ""))
	h.shutdownTask(podID)
}

// TestUpdateBeyondVM asks for more than the VM has, for a container and for the pod.
func TestUpdateBeyondVM(t *testing.T) {
	h := newHarness(t)
	h.runSandbox()
	h.run("c1")
	const mebibyte = 1 << 20
	for name, tc := range map[string]struct {
		memory, quota int64
		refused       bool
	}{
		"fits":            {2048 * mebibyte, 100_000, false},
		"too much memory": {2048*mebibyte + 1, 0, true},
		"too many cpus":   {0, 100_001, true},
		"no limit":        {-1, -1, false},
	} {
		t.Run(name, func(t *testing.T) {
			limits, err := json.Marshal(specs.LinuxResources{
				Memory: &specs.LinuxMemory{Limit: &tc.memory}, CPU: &specs.LinuxCPU{Quota: &tc.quota},
			})
			must(t, err)
			_, err = h.tasks.Update(h.ctx, &taskapi.UpdateTaskRequest{ID: "c1", Resources: &anypb.Any{Value: limits}})
			if errdefs.IsFailedPrecondition(err) != tc.refused || err != nil != tc.refused {
				t.Errorf("update of the container: %v", err)
			}
			pod, err := json.Marshal(map[string]*cri.LinuxContainerResources{
				"Resources": {MemoryLimitInBytes: tc.memory, CpuQuota: tc.quota},
			})
			must(t, err)
			_, err = h.sandboxes.UpdateSandbox(h.ctx, &sandboxapi.UpdateSandboxRequest{SandboxID: podID, Sandbox: &types.Sandbox{
				Extensions: map[string]*anypb.Any{"updated-resources": {TypeUrl: "io.containerd.cri.v1/UpdatedResources", Value: pod}},
			}})
			if errdefs.IsFailedPrecondition(err) != tc.refused || err != nil != tc.refused {
				t.Errorf("update of the pod: %v", err)
			}
		})
	}
}
