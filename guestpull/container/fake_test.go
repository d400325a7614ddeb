package container

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coffer-project/coffer/guestpull/container/cgroup"
	"github.com/coffer-project/coffer/guestpull/container/spec"
	"github.com/coffer-project/coffer/guestpull/disk"
	"github.com/coffer-project/coffer/guestpull/files"
	"github.com/coffer-project/coffer/guestpull/image"
	"github.com/coffer-project/coffer/guestpull/scratch"
	agentpb "github.com/coffer-project/coffer/proto/agent"
	"github.com/coffer-project/coffer/proto/agentpolicy"
	"github.com/coffer-project/coffer/proto/imagepolicy"
	"github.com/coffer-project/coffer/proto/oci"
)

// fakeRuntime starts no container; its processes are sleeps that really exist, so that signals and exits are real.
type fakeRuntime struct {
	mu     sync.Mutex
	calls  []string
	fail   map[string]error
	live   map[string]*exec.Cmd
	onCall func(call string)
	// process is that of the last exec.
	process *specs.Process
}

func (f *fakeRuntime) call(name string) error {
	f.mu.Lock()
	f.calls = append(f.calls, name)
	err, hook := f.fail[name], f.onCall
	f.mu.Unlock()
	if hook != nil {
		hook(name)
	}
	return err
}

func (f *fakeRuntime) did(name string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Contains(f.calls, name)
}

func (f *fakeRuntime) start(id string) (Process, error) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		return Process{}, err
	}
	f.mu.Lock()
	f.live[id] = cmd
	f.mu.Unlock()
	exit := make(chan int, 1)
	go func() {
		_ = cmd.Wait()
		exit <- 128 + 9
	}()
	return Process{PID: cmd.Process.Pid, Exit: exit}, nil
}

func (f *fakeRuntime) Create(_ context.Context, id, _ string, _ Stdio) (Process, error) {
	if err := f.call("create"); err != nil {
		return Process{}, err
	}
	return f.start(id)
}

func (f *fakeRuntime) Exec(_ context.Context, id string, process *specs.Process, _ Stdio) (Process, error) {
	if err := f.call("exec"); err != nil {
		return Process{}, err
	}
	f.mu.Lock()
	f.process = process
	f.mu.Unlock()
	return f.start(id + "/exec")
}

func (f *fakeRuntime) Start(context.Context, string) error { return f.call("start") }

func (f *fakeRuntime) Kill(_ context.Context, id string, _ int) error {
	if err := f.call("kill"); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.live[id].Process.Kill()
}

func (f *fakeRuntime) Freeze(_ context.Context, _ string, frozen bool) error {
	return f.call(map[bool]string{true: "freeze", false: "thaw"}[frozen])
}

func (f *fakeRuntime) Update(context.Context, string, *specs.LinuxResources) error {
	return f.call("update")
}

func (f *fakeRuntime) Delete(context.Context, string) error { return f.call("delete") }

// fakeImages has one image with one layer.
type fakeImages struct {
	mu     sync.Mutex
	layer  string
	config ocispec.ImageConfig
	judged imagepolicy.Verdict
	err    error
	held   map[string]bool
	block  chan struct{} // when set, Pull waits for the end of its context
	last   image.Request
}

func (f *fakeImages) Pull(ctx context.Context, req image.Request) (*image.Image, error) {
	f.mu.Lock()
	f.last, f.held[req.ContainerID] = req, true
	f.mu.Unlock()
	if f.block != nil {
		close(f.block)
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if f.err != nil {
		return nil, f.err
	}
	return &image.Image{ManifestDigest: someDigest, Verdict: f.judged, Config: ocispec.Image{Config: f.config}, Layers: []string{f.layer}, Report: image.Report{Reference: req.Reference}}, nil
}

func (f *fakeImages) Release(_ context.Context, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.held, id)
	return nil
}

type fakeSandbox struct {
	none    bool
	mounted []string
	sysctls map[string]string
}

func (f *fakeSandbox) Namespaces(sharePID bool, _ spec.Users) (Namespaces, error) {
	if f.none {
		return Namespaces{}, errors.New("no sandbox")
	}
	if sharePID {
		return Namespaces{UTS: "/ns/uts", IPC: "/ns/ipc", PID: "/proc/1/ns/pid"}, nil
	}
	return Namespaces{UTS: "/ns/uts", IPC: "/ns/ipc"}, nil
}

func (f *fakeSandbox) Mount(_ context.Context, s *agentpb.Storage) error {
	f.mounted = append(f.mounted, s.GetMountPoint())
	return nil
}

func (f *fakeSandbox) OpenVolume(path string, _ bool) (*os.File, func(context.Context) error, error) {
	handle, err := os.Open(path)
	return handle, func(context.Context) error { return nil }, err
}

func (f *fakeSandbox) SetSysctl(name, value string) error {
	f.sysctls[name] = value
	return nil
}

func (f *fakeSandbox) WatchOOM(string, string) (func(), error) { return func() {}, nil }

type fakes struct {
	*Manager
	runtime *fakeRuntime
	images  *fakeImages
	sandbox *fakeSandbox
	policy  *fakePolicy
	secrets *fakeSecrets
	files   *files.Receiver
	cdi     fakeCDI
}

// fakePolicy refuses at one stage, and keeps what it was told.
type fakePolicy struct {
	refuse string
	mu     sync.Mutex
	told   []*agentpolicy.Facts
}

func (f *fakePolicy) AllowContainer(_ context.Context, _ *agentpb.CreateContainerRequest, facts *agentpolicy.Facts) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.told = append(f.told, facts)
	if facts.Stage == f.refuse {
		return errdefs.ErrPermissionDenied
	}
	return nil
}

// fakeCDI has one device, with one of everything.
type fakeCDI struct{}

func (fakeCDI) Inject(_ context.Context, to *specs.Spec, names []string) error {
	if len(names) != 1 || names[0] != "nvidia.com/gpu=0" {
		return errdefs.ErrNotFound
	}
	to.Process.Env = append(to.Process.Env, "NVIDIA_VISIBLE_DEVICES=void")
	to.Mounts = append(to.Mounts, specs.Mount{Source: "/run/kata-extensions/gpu/lib/x", Destination: "/usr/lib/x", Type: "bind"})
	to.Linux.Devices = append(to.Linux.Devices, specs.LinuxDevice{Path: "/dev/nvidia0", Type: "c"})
	to.Hooks = &specs.Hooks{CreateContainer: []specs.Hook{{Path: "/run/kata-extensions/gpu/bin/hook"}}}
	return nil
}

func newFakes(t *testing.T) *fakes {
	t.Helper()
	f := &fakes{
		runtime: &fakeRuntime{fail: map[string]error{}, live: map[string]*exec.Cmd{}},
		images:  &fakeImages{layer: t.TempDir(), held: map[string]bool{}},
		sandbox: &fakeSandbox{sysctls: map[string]string{}},
		policy:  &fakePolicy{},
		secrets: &fakeSecrets{values: map[string]string{}},
		cdi:     fakeCDI{},
	}
	base := t.TempDir()
	f.files = files.New(base)
	for _, dir := range []string{"shared/containers", "sandbox"} {
		if err := os.MkdirAll(filepath.Join(base, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	place := scratch.NewPlace()
	place.Set("", nil)
	m, err := New(Options{
		Scratch: place, Policy: f.policy, Secrets: f.secrets, Files: f.files,
		Images: f.images, Runtime: f.runtime, Sandbox: f.sandbox, Base: base,
		Holder:       func() (Process, error) { return f.runtime.start("holder") },
		Cgroups:      cgroup.Root(t.TempDir()), // not a cgroup file system: no figures, nothing to remove
		CgroupParent: "/coffer",
		CDI:          f.cdi,
		Disks:        fakeDisks{"1e/01": {Major: 254, Minor: 16}, "1e/02": {Major: 254, Minor: 32, ReadOnly: true}},
	})
	if err != nil {
		t.Fatal(err)
	}
	f.Manager = m
	t.Cleanup(func() {
		if err := m.RemoveAll(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return f
}

// request is the least that makes a container.
func (f *fakes) request(id string) *agentpb.CreateContainerRequest {
	return &agentpb.CreateContainerRequest{
		ContainerId: id, ExecId: id,
		Storages: []*agentpb.Storage{{
			Driver: "image_guest_pull", Source: "registry.test/app:1", Fstype: "overlay", MountPoint: f.rootfs(id),
			DriverOptions: []string{`image_guest_pull={"metadata":{"io.coffer/platform":"linux/amd64"}}`},
		}},
		OCI: &oci.Spec{
			Root:    &oci.Root{Path: f.rootfs(id)},
			Process: &oci.Process{Args: []string{"app"}},
			Linux:   &oci.Linux{},
		},
	}
}

// fakeDisks are the disks that were plugged in, by address.
type fakeDisks map[string]disk.Disk

func (f fakeDisks) Find(_ context.Context, address string) (disk.Disk, error) {
	if found, ok := f[address]; ok {
		return found, nil
	}
	return disk.Disk{}, errdefs.ErrNotFound
}

func (f fakeDisks) FindPassed(_ context.Context, address string) (map[string]disk.Disk, error) {
	if address == "10.1/00" {
		return nil, nil // no disk
	}
	found, err := f.Find(context.Background(), address)
	return map[string]disk.Disk{"nvme0n1": found}, err
}
