package attacks

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"

	"github.com/coffer-project/coffer/guestpull/container"
	"github.com/coffer-project/coffer/guestpull/container/cgroup"
	"github.com/coffer-project/coffer/guestpull/container/spec"
	"github.com/coffer-project/coffer/guestpull/disk"
	"github.com/coffer-project/coffer/guestpull/files"
	"github.com/coffer-project/coffer/guestpull/gpu"
	"github.com/coffer-project/coffer/guestpull/image"
	"github.com/coffer-project/coffer/guestpull/network"
	"github.com/coffer-project/coffer/guestpull/policy"
	"github.com/coffer-project/coffer/guestpull/scratch"
	"github.com/coffer-project/coffer/guestpull/secret"
	"github.com/coffer-project/coffer/guestpull/server"
	"github.com/coffer-project/coffer/integration/require"
	"github.com/coffer-project/coffer/owner/podpolicy"
	agentpb "github.com/coffer-project/coffer/proto/agent"
	"github.com/coffer-project/coffer/proto/initdata"
	"github.com/coffer-project/coffer/proto/oci"
)

const manifest = `kind: Pod
spec:
  volumes: [{name: work, emptyDir: {}}, {name: page, configMap: {name: page}}, {name: creds, secret: {secretName: creds}}]
  initContainers:
  - {name: setup, image: registry.test/app:1, command: [/setup]}
  - {name: proxy, image: registry.test/proxy:1, restartPolicy: Always}
  containers:
  - name: app
    image: registry.test/app:1
    env: [{name: VERIFY, value: "always"}]
    volumeMounts: [{name: work, mountPath: /work}, {name: page, mountPath: /srv/www}, {name: creds, mountPath: /creds}]
    livenessProbe: {exec: {command: [/probe]}}
  - {name: helper, image: registry.test/app:1, securityContext: {runAsUser: 1000, supplementalGroups: [2000]}}
`

// registry is what names mean; an attack changes it.
type registry struct {
	layer string
	base  string // of the guest that pulls from it, in the place of /run/kata-containers

	mu     sync.Mutex
	images map[string]stored
	pulled []string
}

type stored struct {
	digest digest.Digest
	config ocispec.ImageConfig
}

func newRegistry(t *testing.T) *registry {
	t.Helper()
	return &registry{layer: t.TempDir(), base: t.TempDir(), images: storedImages()}
}

func (r *registry) Pull(_ context.Context, req image.Request) (*image.Image, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pulled = append(r.pulled, req.Reference)
	found, ok := r.images[req.Reference]
	if !ok {
		return nil, errdefs.ErrNotFound
	}
	return &image.Image{
		Reference: req.Reference, TargetDigest: found.digest, ManifestDigest: found.digest, Config: ocispec.Image{Config: found.config}, Layers: []string{r.layer},
	}, nil
}

func (r *registry) Release(context.Context, string) error { return nil }

// runtime starts programs that wait.
type runtime struct {
	mu      sync.Mutex
	created []string
	live    map[string]*exec.Cmd
}

func (r *runtime) start(id string) (container.Process, error) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		return container.Process{}, err
	}
	r.mu.Lock()
	r.live[id] = cmd
	r.mu.Unlock()
	exit := make(chan int, 1)
	go func() {
		_ = cmd.Wait()
		exit <- 137
	}()
	return container.Process{PID: cmd.Process.Pid, Exit: exit}, nil
}

func (r *runtime) Create(_ context.Context, id, _ string, _ container.Stdio) (container.Process, error) {
	r.mu.Lock()
	r.created = append(r.created, id)
	r.mu.Unlock()
	return r.start(id)
}

func (r *runtime) Exec(_ context.Context, id string, _ *specs.Process, _ container.Stdio) (container.Process, error) {
	return r.start(id + "/exec")
}

func (r *runtime) Start(context.Context, string) error { return nil }

func (r *runtime) Kill(_ context.Context, id string, _ int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.live[id].Process.Kill()
}

func (r *runtime) Freeze(context.Context, string, bool) error                  { return nil }
func (r *runtime) Update(context.Context, string, *specs.LinuxResources) error { return nil }
func (r *runtime) Delete(context.Context, string) error                        { return nil }

// sandbox is a pod without namespaces of its own.
type sandbox struct{}

func (sandbox) Create(context.Context, *agentpb.CreateSandboxRequest) error { return nil }
func (sandbox) Destroy(context.Context) error                               { return nil }
func (sandbox) NextOOM(ctx context.Context) (string, error)                 { <-ctx.Done(); return "", ctx.Err() }
func (sandbox) Namespaces(bool, spec.Users) (container.Namespaces, error) {
	return container.Namespaces{}, nil
}
func (sandbox) Mount(context.Context, *agentpb.Storage) error { return nil }
func (sandbox) SetSysctl(string, string) error                { return nil }
func (sandbox) WatchOOM(string, string) (func(), error)       { return func() {}, nil }
func (sandbox) OpenVolume(path string, _ bool) (*os.File, func(context.Context) error, error) {
	f, err := os.Open(path)
	return f, func(context.Context) error { return nil }, err
}

type noDisks struct{}

func (noDisks) Find(context.Context, string) (disk.Disk, error) {
	return disk.Disk{}, errdefs.ErrNotFound
}

func (noDisks) FindPassed(context.Context, string) (map[string]disk.Disk, error) {
	return nil, errdefs.ErrNotFound
}

// guest is a guest, with the host's end of its control channel.
type guest struct {
	agentpb.AgentServiceService
	registry *registry
	runtime  *runtime
	base     string
	files    *files.Receiver
	log      *logged
}

// logged is the guest's log with all details.
type logged struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func newGuest(t *testing.T, engine policy.Engine, images *registry) *guest {
	t.Helper()
	require.Root(t)
	place := scratch.NewPlace()
	place.Set("", nil)
	g := &guest{registry: images, runtime: &runtime{live: map[string]*exec.Cmd{}}, base: images.base}
	g.files = files.New(g.base)
	gpus := gpu.New(time.Second)
	gpus.Refuse(errdefs.ErrNotFound)
	manager, err := container.New(container.Options{
		Images: images, Secrets: secret.New(nil, initdata.SecretsConfig{}), Files: g.files, Runtime: g.runtime, Sandbox: sandbox{}, Disks: noDisks{}, CDI: gpus, Scratch: place, Policy: engine, Base: g.base,
		Holder: func() (container.Process, error) { return g.runtime.start("holder") }, Cgroups: cgroup.Root(t.TempDir()), CgroupParent: "/coffer",
	})
	if err != nil {
		t.Fatal(err)
	}
	srv, err := server.New(server.Options{
		Containers: manager, Pulls: image.NewTracker(), Sandbox: sandbox{}, Network: network.New(), Files: g.files, Policy: engine,
		Complete: func(context.Context) error { return nil }, BootPhases: func() []server.Phase { return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	g.log = &logged{}
	logger := logrus.New()
	logger.SetLevel(logrus.TraceLevel)
	logger.SetOutput(g.log)
	go func() { served <- srv.Serve(log.WithLogger(context.Background(), logrus.NewEntry(logger)), l) }()
	conn, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	client := ttrpc.NewClient(conn)
	g.AgentServiceService = agentpb.NewAgentServiceClient(client)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		err := manager.RemoveAll(ctx)
		err = errors.Join(err, client.Close(), srv.Close())
		if got := <-served; err != nil || !errors.Is(got, ttrpc.ErrServerClosed) {
			t.Errorf("end of the guest: %v, %v", err, got)
		}
	})
	return g
}

// storedImages are the images before anybody changes them.
func storedImages() map[string]stored {
	app := ocispec.ImageConfig{Entrypoint: []string{"/app"}, Env: []string{"MODE=safe"}}
	return map[string]stored{
		"registry.test/app:1":   {digest.FromString("app"), app},
		"registry.test/proxy:1": {digest.FromString("proxy"), ocispec.ImageConfig{Entrypoint: []string{"/proxy"}}},
		"registry.test/evil:1":  {digest.FromString("evil"), app},
	}
}

// policyText is the policy of the manifest.
var policyText = sync.OnceValues(func() (string, error) {
	return podpolicy.Generate(context.Background(), []byte(manifest), podpolicy.Options{
		NoLogs: []string{"proxy"},
		Lookup: func(_ context.Context, name string) (*podpolicy.Image, error) {
			found := storedImages()[name]
			return &podpolicy.Image{Digests: []string{found.digest.String()}, Config: found.config}, nil
		},
	})
})

// generated is the policy of the manifest, for the guest that pulls these images.
func generated(t *testing.T, images *registry) *policy.Measured {
	t.Helper()
	text, err := policyText()
	if err != nil {
		t.Fatal(err)
	}
	engine, err := policy.NewMeasured(strings.ReplaceAll(text, "/run/kata-containers/", images.base+"/"))
	if err != nil {
		t.Fatal(err)
	}
	return engine
}

// copyIn copies a file as a host does.
func (g *guest) copyIn(t *testing.T, name, content string) {
	t.Helper()
	if _, err := g.CopyFile(t.Context(), &agentpb.CopyFileRequest{
		Path: filepath.Join(g.base, "shared/containers", name), FileMode: 0o100600, FileSize: int64(len(content)), Data: []byte(content),
	}); err != nil {
		t.Fatal(err)
	}
}

// request is an honest one for a container of the manifest.
func (g *guest) request(id, name string) *agentpb.CreateContainerRequest {
	reference, process := "registry.test/app:1", &oci.Process{Args: []string{"/app"}, Env: []string{"MODE=safe", "VERIFY=always"}, Cwd: "/", User: &oci.User{}}
	switch name {
	case "setup":
		process.Args, process.Env = []string{"/setup"}, []string{"MODE=safe"}
	case "helper":
		process.Env, process.User = []string{"MODE=safe"}, &oci.User{UID: 1000, AdditionalGids: []uint32{2000}}
	case "proxy":
		reference, process.Args, process.Env = "registry.test/proxy:1", []string{"/proxy"}, []string{"HOSTNAME=pod"}
	}
	root := filepath.Join(g.base, id, "rootfs")
	return &agentpb.CreateContainerRequest{
		ContainerId: id, ExecId: id,
		Storages: []*agentpb.Storage{{
			Driver: "image_guest_pull", Source: reference, Fstype: "overlay", MountPoint: root, DriverOptions: []string{`image_guest_pull={"metadata":{}}`},
		}},
		OCI: &oci.Spec{
			Root: &oci.Root{Path: root}, Process: process, Linux: &oci.Linux{},
			Mounts: []*oci.Mount{{Destination: "/proc", Source: "proc", Type: "proc"}},
			Annotations: map[string]string{
				"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.container-name": name, "io.kubernetes.cri.image-name": reference,
			},
		},
	}
}

// run creates and starts a container as an honest host does.
func (g *guest) run(t *testing.T, id, name string) {
	t.Helper()
	if _, err := g.CreateContainer(t.Context(), g.request(id, name)); err != nil {
		t.Fatalf("create %s: %v", name, err)
	}
	if _, err := g.StartContainer(t.Context(), &agentpb.StartContainerRequest{ContainerId: id}); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
}

func (g *guest) remove(t *testing.T, id string) {
	t.Helper()
	if _, err := g.RemoveContainer(t.Context(), &agentpb.RemoveContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
}

func (g *guest) has(id string) bool {
	g.runtime.mu.Lock()
	defer g.runtime.mu.Unlock()
	return slices.Contains(g.runtime.created, id)
}
