package guestagent

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coffer-project/coffer/integration/harness"
	"github.com/coffer-project/coffer/integration/registrytest"
	agentpb "github.com/coffer-project/coffer/proto/agent"
	guestpb "github.com/coffer-project/coffer/proto/guestpull/v1"
	"github.com/coffer-project/coffer/proto/oci"
)

const (
	base       = "/run/kata-containers"
	callsBound = 60 * time.Second
)

// request asks for a container of the busybox image.
func (g *guest) request(id, reference string, args ...string) *agentpb.CreateContainerRequest {
	rootfs := base + "/" + id + "/rootfs"
	caps := []string{"CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID"}
	return &agentpb.CreateContainerRequest{
		ContainerId: id, ExecId: id,
		Storages: []*agentpb.Storage{{
			Driver: "image_guest_pull", Source: reference, Fstype: "overlay", MountPoint: rootfs,
			DriverOptions: []string{`image_guest_pull={"metadata":{"io.coffer/platform":"linux/amd64"}}`},
		}},
		OCI: &oci.Spec{
			Root: &oci.Root{Path: rootfs},
			Process: &oci.Process{Args: args, Env: []string{"PATH=/bin"}, Cwd: "/srv/dir", User: &oci.User{},
				Capabilities: &oci.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}},
			Mounts: []*oci.Mount{
				{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
				{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755", "size=65536k"}},
				{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
				{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
				{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
				{Destination: "/dev/shm", Type: "bind", Source: base + "/sandbox/shm", Options: []string{"rbind"}},
			},
			Linux: &oci.Linux{
				Namespaces:  []*oci.LinuxNamespace{{Type: "pid"}, {Type: "ipc"}, {Type: "uts"}, {Type: "mount"}, {Type: "cgroup"}},
				Resources:   &oci.LinuxResources{Memory: &oci.LinuxMemory{Limit: 32 << 20}, Pids: &oci.LinuxPids{Limit: 50}},
				MaskedPaths: []string{"/proc/kcore"}, ReadonlyPaths: []string{"/proc/sys"},
				Seccomp: &oci.LinuxSeccomp{DefaultAction: "SCMP_ACT_ALLOW", Architectures: []string{"SCMP_ARCH_X86_64"},
					Syscalls: []*oci.LinuxSyscall{{Names: []string{"mkdir", "mkdirat"}, Action: "SCMP_ACT_ERRNO"}}},
			},
		},
	}
}

func (g *guest) run(t *testing.T, req *agentpb.CreateContainerRequest) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), callsBound)
	defer cancel()
	_, err := g.agent.CreateContainer(ctx, req)
	must(t, err)
	_, err = g.agent.StartContainer(ctx, &agentpb.StartContainerRequest{ContainerId: req.GetContainerId()})
	must(t, err)
}

func (g *guest) output(t *testing.T, id, exec string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), callsBound)
	defer cancel()
	var out strings.Builder
	for {
		chunk, err := g.agent.ReadStdout(ctx, &agentpb.ReadStreamRequest{ContainerId: id, ExecId: exec, Len: 32 << 10})
		must(t, err)
		if len(chunk.GetData()) == 0 {
			return out.String()
		}
		out.Write(chunk.GetData())
	}
}

func (g *guest) wait(t *testing.T, id, exec string) int32 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), callsBound)
	defer cancel()
	answer, err := g.agent.WaitProcess(ctx, &agentpb.WaitProcessRequest{ContainerId: id, ExecId: exec})
	must(t, err)
	return answer.GetStatus()
}

func (g *guest) remove(t *testing.T, id string) {
	t.Helper()
	_, err := g.agent.RemoveContainer(t.Context(), &agentpb.RemoveContainerRequest{ContainerId: id})
	must(t, err)
}

// pushBusybox puts the image into the registry and returns its reference as the guest has to write it.
func (g *guest) pushBusybox(t *testing.T) string {
	t.Helper()
	layer, err := harness.Busybox("/bin/busybox")
	must(t, err)
	g.registry.Put("busybox", "1", registrytest.NewImage([]registrytest.Layer{layer}, nil, nil))
	return g.host + "/busybox:1"
}

// TestPod is one guest's life; the parts share it, because a boot takes seconds.
func TestPod(t *testing.T) {
	g := boot(t)
	reference := g.pushBusybox(t)
	_, err := g.agent.CreateContainer(t.Context(), g.request("early", reference, "true"))
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("container before the sandbox: %v", err)
	}
	_, err = g.agent.CreateSandbox(t.Context(), &agentpb.CreateSandboxRequest{SandboxId: "pod", Hostname: "pod-name", SandboxPidns: true})
	must(t, err)

	t.Run("run", func(t *testing.T) {
		g.run(t, g.request("run", reference, "sh", "-c",
			"hostname; pwd; cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max; touch /x && echo writable; mkdir /y 2>/dev/null || echo filtered; exit 4"))
		want := "pod-name\n/srv/dir\n33554432\n50\nwritable\nfiltered\n"
		if got := g.output(t, "run", ""); got != want {
			t.Errorf("output %q, want %q", got, want)
		}
		if got := g.wait(t, "run", ""); got != 4 {
			t.Errorf("exit status %d", got)
		}
		report, err := g.diagnostics.GetPullReport(t.Context(), &guestpb.GetPullReportRequest{ContainerId: "run"})
		must(t, err)
		t.Logf("pull: %v", report.GetPhases())
		g.remove(t, "run")
	})
	t.Run("figures", func(t *testing.T) {
		g.run(t, g.request("figures", reference, "sh", "-c", "echo up; cat; true"))
		chunk, err := g.agent.ReadStdout(t.Context(), &agentpb.ReadStreamRequest{ContainerId: "figures", Len: 10})
		must(t, err)
		if string(chunk.GetData()) != "up\n" {
			t.Errorf("output %q", chunk.GetData())
		}
		stats, err := g.agent.StatsContainer(t.Context(), &agentpb.StatsContainerRequest{ContainerId: "figures"})
		must(t, err)
		s := stats.GetCgroupStats()
		if s.GetPidsStats().GetCurrent() != 2 || s.GetPidsStats().GetLimit() != 50 || s.GetMemoryStats().GetUsage().GetUsage() == 0 ||
			s.GetMemoryStats().GetUsage().GetLimit() != 32<<20 || s.GetCpuStats().GetCpuUsage().GetTotalUsage() == 0 {
			t.Errorf("figures: %v", s)
		}
		_, err = g.agent.UpdateContainer(t.Context(), &agentpb.UpdateContainerRequest{ContainerId: "figures",
			Resources: &oci.LinuxResources{Memory: &oci.LinuxMemory{Limit: 48 << 20}}})
		must(t, err)
		stats, err = g.agent.StatsContainer(t.Context(), &agentpb.StatsContainerRequest{ContainerId: "figures"})
		must(t, err)
		if got := stats.GetCgroupStats().GetMemoryStats().GetUsage().GetLimit(); got != 48<<20 {
			t.Errorf("limit after the update: %d", got)
		}
		_, err = g.agent.PauseContainer(t.Context(), &agentpb.PauseContainerRequest{ContainerId: "figures"})
		must(t, err)
		g.remove(t, "figures") // also while it is paused
	})
	t.Run("out of memory", func(t *testing.T) {
		// Two containers, so that the event must name the right one.
		g.run(t, g.request("calm", reference, "sleep", "1000"))
		g.run(t, g.request("greedy", reference, "dd", "if=/dev/zero", "of=/dev/shm/x", "bs=1048576", "count=60"))
		ctx, cancel := context.WithTimeout(t.Context(), callsBound)
		defer cancel()
		event, err := g.agent.GetOOMEvent(ctx, &agentpb.GetOOMEventRequest{})
		must(t, err)
		if event.GetContainerId() != "greedy" {
			t.Errorf("event of %q", event.GetContainerId())
		}
		if got := g.wait(t, "greedy", ""); got != 128+9 {
			t.Errorf("exit status %d", got)
		}
		g.remove(t, "greedy")
		g.remove(t, "calm")
	})
	t.Run("shared processes", func(t *testing.T) {
		first := g.request("first", reference, "sleep", "987")
		first.SandboxPidns = true
		g.run(t, first)
		second := g.request("second", reference, "ps")
		second.SandboxPidns = true
		g.run(t, second)
		if got := g.output(t, "second", ""); !strings.Contains(got, "sleep 987") {
			t.Errorf("processes: %q", got)
		}
		_, err := g.agent.SignalProcess(t.Context(), &agentpb.SignalProcessRequest{ContainerId: "first", Signal: 9})
		must(t, err)
		if got := g.wait(t, "first", ""); got != 128+9 {
			t.Errorf("exit status %d", got)
		}
		g.remove(t, "second")
		g.remove(t, "first")
	})
	t.Run("image that is not there", func(t *testing.T) {
		_, err := g.agent.CreateContainer(t.Context(), g.request("absent", g.host+"/absent:1", "true"))
		if status.Code(err) != codes.NotFound || !strings.Contains(err.Error(), g.host+"/absent:1") {
			t.Errorf("error: %v", err)
		}
	})
	t.Run("end", func(t *testing.T) {
		g.run(t, g.request("left", reference, "sleep", "1000"))
		_, err := g.agent.DestroySandbox(t.Context(), &agentpb.DestroySandboxRequest{})
		must(t, err)
		_, err = g.agent.CreateSandbox(t.Context(), &agentpb.CreateSandboxRequest{SandboxId: "next"})
		if status.Code(err) != codes.FailedPrecondition {
			t.Errorf("second sandbox: %v", err)
		}
	})
	report, err := g.diagnostics.GetBootReport(t.Context(), &guestpb.GetBootReportRequest{})
	must(t, err)
	t.Logf("boot: %v", report.GetPhases())
}
