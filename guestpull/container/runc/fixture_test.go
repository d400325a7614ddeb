package runc_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/guestpull/container"
	"github.com/coffer-project/coffer/guestpull/container/cgroup"
	"github.com/coffer-project/coffer/guestpull/container/reap"
	"github.com/coffer-project/coffer/guestpull/container/runc"
	"github.com/coffer-project/coffer/guestpull/container/spec"
	"github.com/coffer-project/coffer/guestpull/disk"
	"github.com/coffer-project/coffer/guestpull/files"
	"github.com/coffer-project/coffer/guestpull/gpu"
	"github.com/coffer-project/coffer/guestpull/image"
	"github.com/coffer-project/coffer/guestpull/policy"
	"github.com/coffer-project/coffer/guestpull/sandbox"
	"github.com/coffer-project/coffer/guestpull/sandbox/holder"
	"github.com/coffer-project/coffer/guestpull/scratch"
	"github.com/coffer-project/coffer/guestpull/secret"
	"github.com/coffer-project/coffer/integration/require"
	agentpb "github.com/coffer-project/coffer/proto/agent"
	"github.com/coffer-project/coffer/proto/initdata"
	"github.com/coffer-project/coffer/proto/oci"
	"github.com/containerd/errdefs"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == holder.Arg {
		os.Exit(holder.Main())
	}
	ctx, stop := context.WithCancel(context.Background())
	if err := reap.Serve(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	stop()
	os.Exit(code)
}

// pod is a sandbox with a container manager over the real runc, and images made of one busybox layer.
type pod struct {
	*container.Manager
	base    string
	sandbox *sandbox.Sandbox
	images  *fakeImages
}

func newPod(t *testing.T, sharePID bool) *pod {
	t.Helper()
	require.Root(t)
	binary := require.Cached(t, "bin/runc")
	busybox := require.Program(t, "/bin/busybox", "run make setup")
	p := &pod{base: t.TempDir()}
	p.images = &fakeImages{layer: busyboxLayer(t, busybox), held: map[string]bool{}}
	exits := reap.New()
	t.Cleanup(exits.Close)
	driver, err := runc.New(binary, filepath.Join(p.base, ".state"), exits)
	must(t, err)
	hold := func(newPID bool) container.Holder {
		return func() (container.Process, error) {
			cmd, err := holder.Command("/proc/self/exe", newPID)
			if err != nil {
				return container.Process{}, err
			}
			return holder.Start(exits, cmd)
		}
	}
	noDisk := scratch.NewPlace()
	noDisk.Set("", nil)
	p.sandbox, err = sandbox.New(sandbox.Options{
		Scratch: noDisk, Base: p.base, ResolvConf: filepath.Join(p.base, "resolv.conf"), Sysctls: t.TempDir(), Cgroups: cgroup.Default, Holder: hold(true),
		UserHolder: func(users spec.Users) (container.Process, error) {
			cmd, err := holder.UserCommand("/proc/self/exe", users)
			if err != nil {
				return container.Process{}, err
			}
			return holder.Start(exits, cmd)
		},
	})
	must(t, err)
	p.Manager, err = container.New(container.Options{
		Policy: policy.NewBuiltin(), Secrets: secret.New(nil, initdata.SecretsConfig{}), Files: files.New(p.base),
		Images: p.images, Runtime: driver, Sandbox: p.sandbox, Holder: hold(false), Base: p.base, Cgroups: cgroup.Default,
		CgroupParent: fmt.Sprintf("/coffer-test-%d", os.Getpid()), Disks: disk.New(time.Second), CDI: noGPUs(), Scratch: noDisk,
	})
	must(t, err)
	must(t, p.sandbox.Create(t.Context(), &agentpb.CreateSandboxRequest{
		SandboxId: "pod", Hostname: "pod-name", Dns: []string{"nameserver 10.0.0.10"}, SandboxPidns: sharePID,
	}))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := p.RemoveAll(ctx); err != nil {
			t.Error(err)
		}
		if err := p.sandbox.Destroy(ctx); err != nil {
			t.Error(err)
		}
		removeCgroups(t)
		if left := mountsBelow(t, p.base); len(left) > 0 {
			t.Error("mounts are left: ", left)
		}
	})
	return p
}

// noGPUs is a guest without passed-through devices.
func noGPUs() *gpu.Service {
	s := gpu.New(time.Second)
	s.Refuse(errdefs.ErrNotFound)
	return s
}

type fakeImages struct {
	layer string
	held  map[string]bool
	err   error
}

func (f *fakeImages) Pull(_ context.Context, req image.Request) (*image.Image, error) {
	if f.err != nil {
		return nil, f.err
	}
	f.held[req.ContainerID] = true
	return &image.Image{Reference: req.Reference, Layers: []string{f.layer}}, nil
}

func (f *fakeImages) Release(_ context.Context, id string) error {
	delete(f.held, id)
	return nil
}

func busyboxLayer(t *testing.T, busybox string) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o755))
	for _, d := range []string{"bin", "etc", "proc", "sys", "dev", "tmp", "home"} {
		must(t, os.Mkdir(filepath.Join(dir, d), 0o755))
	}
	program, err := os.ReadFile(busybox)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "bin/busybox"), program, 0o755))
	for _, name := range []string{"sh", "cat", "echo", "sleep", "id", "hostname", "stty", "ls", "ps", "kill", "test", "tty", "touch", "grep", "true"} {
		must(t, os.Symlink("busybox", filepath.Join(dir, "bin", name)))
	}
	must(t, os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte("root:x:0:0::/:/bin/sh\napp:x:1000:1001::/home:/bin/sh\n"), 0o644))
	must(t, os.WriteFile(filepath.Join(dir, "etc/group"), []byte("root:x:0:\napp:x:1001:\nextra:x:2000:app\n"), 0o644))
	return dir
}

// request asks for a container with a usual specification.
func (p *pod) request(id string, args ...string) *agentpb.CreateContainerRequest {
	rootfs := filepath.Join(p.base, id, "rootfs")
	metadata, err := json.Marshal(map[string]any{"metadata": map[string]string{}})
	if err != nil {
		panic(err)
	}
	caps := []string{"CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID"}
	return &agentpb.CreateContainerRequest{
		ContainerId: id, ExecId: id,
		Storages: []*agentpb.Storage{{
			Driver: "image_guest_pull", Source: "registry.test/busybox:1", Fstype: "overlay", MountPoint: rootfs,
			DriverOptions: []string{"image_guest_pull=" + string(metadata)},
		}},
		OCI: &oci.Spec{
			Version: "1.1.0",
			Root:    &oci.Root{Path: rootfs},
			Process: &oci.Process{
				Args: args, Env: []string{"PATH=/bin"}, Cwd: "/", User: &oci.User{},
				Capabilities: &oci.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
			},
			Mounts: []*oci.Mount{
				{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
				{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
				{Destination: "/dev/pts", Type: "devpts", Source: "devpts",
					Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
				{Destination: "/dev/shm", Type: "bind", Source: filepath.Join(p.base, "sandbox/shm"), Options: []string{"rbind", "rw"}},
			},
			Linux: &oci.Linux{
				Namespaces: []*oci.LinuxNamespace{{Type: "pid"}, {Type: "ipc"}, {Type: "uts"}, {Type: "mount"}},
				Resources:  &oci.LinuxResources{Memory: &oci.LinuxMemory{Limit: 64 << 20}},
			},
		},
	}
}

// run creates and starts a container.
func (p *pod) run(t *testing.T, req *agentpb.CreateContainerRequest) {
	t.Helper()
	must(t, p.Create(t.Context(), req))
	must(t, p.Start(t.Context(), req.GetContainerId()))
}

// output reads a stream to its end.
func (p *pod) output(t *testing.T, id, exec string, stderr bool) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var out strings.Builder
	for {
		data, err := p.Read(ctx, id, exec, stderr, 4096)
		must(t, err)
		if len(data) == 0 {
			return out.String()
		}
		out.Write(data)
	}
}

func (p *pod) wantExit(t *testing.T, id, exec string, want int32) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	got, err := p.Wait(ctx, id, exec)
	must(t, err)
	if got != want {
		t.Fatalf("exit status of %s/%s: got %d, want %d; stderr %q", id, exec, got, want, p.output(t, id, exec, true))
	}
}

// removeCgroups removes the groups of this test program; it fails when one has a child, a container that is left.
func removeCgroups(t *testing.T) {
	t.Helper()
	dirs, err := filepath.Glob(fmt.Sprintf("/sys/fs/cgroup/*/coffer-test-%d", os.Getpid()))
	must(t, err)
	for _, dir := range append(dirs, fmt.Sprintf("/sys/fs/cgroup/coffer-test-%d", os.Getpid())) {
		if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
	}
}

func mountsBelow(t *testing.T, dir string) []string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	var out []string
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); strings.HasPrefix(fields[4], dir+"/") {
			out = append(out, fields[4])
		}
	}
	return out
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
