package guestagent

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coffer-project/coffer/integration/guestvm"
	agentpb "github.com/coffer-project/coffer/proto/agent"
)

// otherInit is a guest image whose init is not the agent, but becomes it.
var otherInit = guestvm.NewImage("integration/guestagent/otherinit")

// agentDisk is the agent as a disk.
func agentDisk(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "agent")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", file, "github.com/coffer-project/coffer/cmd/coffer-guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	info, err := os.Stat(file)
	must(t, err)
	must(t, os.Truncate(file, (info.Size()+4095)/4096*4096)) // in whole sectors
	return file
}

// TestOtherInit runs containers where another init has set the machine up, as in NVIDIA's images, one of them with a GPU.
func TestOtherInit(t *testing.T) {
	g := bootWith(t, otherInit, guestvm.Config{
		Serials: map[string]string{"agent": agentDisk(t)}, MemoryMiB: 1024,
		Params: []string{"agent.log=debug", "cgroup_no_v1=all", "nvrc.smi.srs=1", "agent.devmode"},
	})
	g.vm.WaitLine(t, "another init has started this machine, its mounts are kept")
	g.vm.WaitLine(t, "kernel parameter has no effect in this guest name=nvrc.smi.srs")
	reference := g.pushBusybox(t)
	_, err := g.agent.CreateSandbox(t.Context(), &agentpb.CreateSandboxRequest{SandboxId: "pod", Hostname: "pod-name", Dns: []string{"nameserver 10.0.2.3"}})
	must(t, err)

	t.Run("container", func(t *testing.T) {
		g.run(t, g.request("plain", reference, "sh", "-c",
			"hostname; cat /proc/self/oom_score_adj; ls /dev/nvidia0 2>&1; test -e /usr/lib/libcuda.so.1 || echo no library; touch /x && echo writable; echo ${NVIDIA_VISIBLE_DEVICES-unset}"))
		want := "pod-name\n0\nls: /dev/nvidia0: No such file or directory\nno library\nwritable\nunset\n"
		if got := g.output(t, "plain", ""); got != want {
			t.Errorf("output %q, want %q", got, want)
		}
		g.remove(t, "plain")
	})
	t.Run("container with a GPU", func(t *testing.T) {
		req := g.request("gpu", reference, "sh", "-c",
			"echo thrown away > /dev/nvidia0 && echo used; grep -c localhost /usr/lib/libcuda.so.1; touch /usr/lib/libcuda.so.1 2>/dev/null || echo read-only; echo $NVIDIA_VISIBLE_DEVICES; cat /hook-ran")
		req.Devices = []*agentpb.Device{{Id: "vfio0", Type: "vfio-pci-gk", ContainerPath: "/dev/vfio/devices/vfio0"}}
		req.OCI.Annotations = map[string]string{"cdi.k8s.io/vfio0": "nvidia.com/gpu=0"}
		g.run(t, req)
		if got, want := g.output(t, "gpu", ""), "used\n2\nread-only\nvoid\nupdate-ldcache\n"; got != want {
			t.Errorf("output %q, want %q", got, want)
		}
		g.remove(t, "gpu")
	})
	t.Run("GPU that is not there", func(t *testing.T) {
		req := g.request("absent", reference, "true")
		req.OCI.Annotations = map[string]string{"cdi.k8s.io/vfio0": "nvidia.com/gpu=1"}
		_, err := g.agent.CreateContainer(t.Context(), req)
		if status.Code(err) != codes.NotFound || !strings.Contains(err.Error(), "nvidia.com/gpu=1") {
			t.Errorf("error: %v", err)
		}
	})
}
