package plugin

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	"google.golang.org/protobuf/types/known/anypb"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coffer-project/coffer/proto/mux"
	"github.com/coffer-project/coffer/proto/volume"
	"github.com/coffer-project/coffer/shim/agent/agenttest"
	"github.com/coffer-project/coffer/shim/config"
	"github.com/coffer-project/coffer/shim/device/vfio/vfiotest"
	"github.com/coffer-project/coffer/shim/manager"
	"github.com/coffer-project/coffer/shim/network"
	"github.com/coffer-project/coffer/shim/sandbox"
	"github.com/coffer-project/coffer/shim/vm"
	"github.com/coffer-project/coffer/shim/vm/vmtest"
)

const (
	podID    = "pod-0"
	patience = 20 * time.Second
)

// harness is a whole shim in this process, with a fake VM and a fake guest, served over ttrpc as containerd sees it.
type harness struct {
	t         *testing.T
	ctx       context.Context
	root      string
	bundle    string // the pod's
	netns     string // of containers, empty for one that they are to get
	hooks     *specs.Hooks
	host      *host
	end       shutdown.Service
	guest     *agenttest.Guest
	driver    *vmtest.Driver
	network   *fakeNetwork
	events    *eventLog
	config    *config.Config
	mounts    []specs.Mount // of containers
	records   *fakeRecords
	user      specs.User          // who containers are to run as
	machine   *vfiotest.Tree      // physical devices of the node
	devices   []specs.LinuxDevice // of containers
	tasks     taskapi.TTRPCTaskService
	sandboxes sandboxapi.TTRPCSandboxService
}

// newHarness starts a shim; it is shut down, and checked for what it left, when the test ends.
func newHarness(t *testing.T, options ...agenttest.Option) *harness {
	t.Helper()
	root := t.TempDir()
	h := &harness{
		t: t, root: root, netns: "/run/netns/pod", bundle: filepath.Join(root, "bundle"), guest: agenttest.New(t, options...), driver: &vmtest.Driver{},
		network: &fakeNetwork{attached: map[string]int{}}, events: newEventLog(), records: newFakeRecords(), config: config.Default(),
		machine: vfiotest.New(t, true),
	}
	h.config.StateDir = filepath.Join(root, "state")
	h.config.Guest.BootTimeout.Duration = 5 * time.Second
	h.config.Guest.RequestTimeout.Duration = 5 * time.Second
	h.driver.OnStart = h.bridge
	must(t, os.Mkdir(h.bundle, 0o700))
	must(t, (&manager.Record{Address: "unix://" + filepath.Join(root, "s")}).Write(h.bundle))
	record, err := openRecord(h.bundle)
	must(t, err)
	before := goroutines()

	life := namespaces.WithNamespace(log.WithLogger(context.Background(), testLogger(t)), "test")
	life, h.end = shutdown.WithShutdown(life)
	h.host = assemble(life, sandbox.Platform{
		LoadConfig: func(string) (*config.Config, error) { return h.config, nil },
		NewDriver:  func(*config.Config) (vm.Driver, error) { return h.driver, nil },
		Network:    h.network,
		Forward:    h.network.forward,
		Devices:    h.machine.Host,
		HostDNS:    func() (*cri.DNSConfig, error) { return &cri.DNSConfig{Servers: []string{"192.0.2.53"}}, nil },
	}, h.events, h.records, h.end, record)
	h.serve(life)
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), "test"), 2*patience)
	h.ctx = ctx
	t.Cleanup(func() {
		cancel()
		h.end.Shutdown()
		h.await("shim to shut down", h.end.Done())
		h.checkNothingLeft()
		if _, err := os.Stat(filepath.Join(h.root, "s")); err == nil {
			t.Error("the socket is left")
		}
		checkGoroutines(t, before)
	})
	return h
}

func (h *harness) serve(life context.Context) {
	listener, err := net.Listen("unix", filepath.Join(h.root, "s"))
	must(h.t, err)
	server, err := ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(h.host.UnaryServerInterceptor()))
	must(h.t, err)
	must(h.t, h.host.tasks.RegisterTTRPC(server))
	must(h.t, h.host.sandboxes.RegisterTTRPC(server))
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(life, listener)
	}()
	conn, err := net.Dial("unix", filepath.Join(h.root, "s"))
	must(h.t, err)
	client := ttrpc.NewClient(conn, ttrpc.WithUnaryClientInterceptor(native))
	h.tasks = taskapi.NewTTRPCTaskClient(client)
	h.sandboxes = sandboxapi.NewTTRPCSandboxClient(client)
	h.t.Cleanup(func() {
		client.Close()
		server.Close()
		<-served
	})
}

// native gives tests the errdefs classes that containerd would see.
func native(ctx context.Context, req *ttrpc.Request, resp *ttrpc.Response, _ *ttrpc.UnaryClientInfo, invoke ttrpc.Invoker) error {
	err := invoke(ctx, req, resp)
	if err == nil && resp.Status != nil && resp.Status.Code != 0 {
		err = errgrpc.ToNative(statusError(resp))
	}
	return err
}

// bridge lets connections to the fake VM's agent port reach the fake guest.
func (h *harness) bridge(instance *vmtest.Instance) {
	instance.Print("guest: hello")
	listener := instance.Listen(mux.AgentPort)
	go func() {
		for {
			outer, err := listener.Accept()
			if err != nil {
				return
			}
			inner, err := h.guest.Dial(context.Background(), mux.AgentPort)
			if err != nil {
				outer.Close()
				return
			}
			go splice(outer, inner)
			go splice(inner, outer)
		}
	}()
}

func splice(to, from net.Conn) {
	_, _ = io.Copy(to, from)
	to.Close()
	from.Close()
}

// vm is the pod's one fake VM.
func (h *harness) vm() *vmtest.Instance {
	h.t.Helper()
	instances := h.driver.Instances()
	if len(instances) != 1 {
		h.t.Fatalf("%d virtual machines were made, want 1", len(instances))
	}
	return instances[0]
}

func (h *harness) createSandbox() error {
	options, err := anypb.New(&cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: "web"}, Hostname: "web",
		DnsConfig: &cri.DNSConfig{Servers: []string{"10.96.0.10"}},
		Linux: &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{
			NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER},
		}},
	})
	must(h.t, err)
	_, err = h.sandboxes.CreateSandbox(h.ctx, &sandboxapi.CreateSandboxRequest{
		SandboxID: podID, BundlePath: h.bundle, NetnsPath: "/run/netns/pod", Options: options,
	})
	return err
}

func (h *harness) startSandbox() error {
	_, err := h.sandboxes.StartSandbox(h.ctx, &sandboxapi.StartSandboxRequest{SandboxID: podID})
	return err
}

// runSandbox makes a running pod.
func (h *harness) runSandbox() {
	h.t.Helper()
	must(h.t, h.createSandbox())
	must(h.t, h.startSandbox())
}

// stdioPaths are a task's FIFOs.
type stdioPaths struct{ stdin, stdout, stderr string }

func (h *harness) fifos(name string) stdioPaths {
	h.t.Helper()
	p := stdioPaths{
		stdin:  filepath.Join(h.root, name+"-in"),
		stdout: filepath.Join(h.root, name+"-out"),
		stderr: filepath.Join(h.root, name+"-err"),
	}
	for _, path := range []string{p.stdin, p.stdout, p.stderr} {
		mkfifo(h.t, path)
	}
	return p
}

// writeBundle makes a container's bundle as containerd does.
func (h *harness) writeBundle(id string, annotations map[string]string) string {
	h.t.Helper()
	dir := filepath.Join(h.root, "bundle-"+id)
	must(h.t, os.Mkdir(dir, 0o700))
	spec := specs.Spec{
		Version: specs.Version, Annotations: annotations, Hostname: "spec-host", Hooks: h.hooks,
		Process: &specs.Process{Args: []string{"/bin/app"}, Cwd: "/", User: h.user},
		Root:    &specs.Root{Path: "rootfs"},
		Mounts:  h.mounts,
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{{Type: specs.NetworkNamespace, Path: h.netns}}, Devices: h.devices,
		},
	}
	raw, err := json.Marshal(spec)
	must(h.t, err)
	must(h.t, os.WriteFile(filepath.Join(dir, "config.json"), raw, 0o600))
	return dir
}

func rootfs(t *testing.T) []*types.Mount {
	t.Helper()
	option, err := (&volume.Volume{
		VolumeType: volume.TypeImageGuestPull, Source: "registry.example/app:1", ImagePull: &volume.ImagePull{},
	}).Option()
	must(t, err)
	return []*types.Mount{{Type: "bind", Source: t.TempDir(), Options: []string{"rbind", "ro", option}}}
}

func (h *harness) create(id string, io stdioPaths, annotations map[string]string) error {
	h.t.Helper()
	_, err := h.tasks.Create(h.ctx, &taskapi.CreateTaskRequest{
		ID: id, Bundle: h.writeBundle(id, annotations), Rootfs: rootfs(h.t), Stdin: io.stdin, Stdout: io.stdout, Stderr: io.stderr,
	})
	return err
}

func (h *harness) start(id, exec string) error {
	_, err := h.tasks.Start(h.ctx, &taskapi.StartRequest{ID: id, ExecID: exec})
	return err
}

// run creates and starts a container without stdio and returns its process in the guest.
func (h *harness) run(id string) *agenttest.Process {
	h.t.Helper()
	must(h.t, h.create(id, stdioPaths{}, nil))
	must(h.t, h.start(id, ""))
	return h.process(id, "")
}

func (h *harness) process(id, exec string) *agenttest.Process {
	h.t.Helper()
	p, err := h.guest.Process(id, exec)
	must(h.t, err)
	return p
}

func (h *harness) exec(id, exec string, io stdioPaths) error {
	h.t.Helper()
	raw, err := json.Marshal(specs.Process{Args: []string{"/bin/sh"}, Cwd: "/", User: h.user})
	must(h.t, err)
	_, err = h.tasks.Exec(h.ctx, &taskapi.ExecProcessRequest{
		ID: id, ExecID: exec, Stdin: io.stdin, Stdout: io.stdout, Stderr: io.stderr, Spec: &anypb.Any{Value: raw},
	})
	return err
}

func (h *harness) wait(id, exec string) uint32 {
	h.t.Helper()
	response, err := h.tasks.Wait(h.ctx, &taskapi.WaitRequest{ID: id, ExecID: exec})
	must(h.t, err)
	return response.GetExitStatus()
}

func (h *harness) kill(id, exec string, signal uint32) error {
	_, err := h.tasks.Kill(h.ctx, &taskapi.KillRequest{ID: id, ExecID: exec, Signal: signal})
	return err
}

func (h *harness) delete(id, exec string) error {
	_, err := h.tasks.Delete(h.ctx, &taskapi.DeleteRequest{ID: id, ExecID: exec})
	return err
}

func (h *harness) status(verbose bool) *sandboxapi.SandboxStatusResponse {
	h.t.Helper()
	status, err := h.sandboxes.SandboxStatus(h.ctx, &sandboxapi.SandboxStatusRequest{SandboxID: podID, Verbose: verbose})
	must(h.t, err)
	return status
}

func (h *harness) report() sandbox.Report {
	h.t.Helper()
	var report sandbox.Report
	must(h.t, json.Unmarshal([]byte(h.status(true).GetInfo()[sandbox.InfoKey]), &report))
	return report
}

func (h *harness) await(what string, done <-chan struct{}) {
	h.t.Helper()
	select {
	case <-done:
	case <-time.After(patience):
		h.t.Fatalf("waited %s for %s", patience, what)
	}
}

// checkNothingLeft is what every fault must leave: no VM, no network, no state directory.
func (h *harness) checkNothingLeft() {
	h.t.Helper()
	for _, instance := range h.driver.Instances() {
		select {
		case <-instance.Done():
		default:
			h.t.Error("a virtual machine still runs")
		}
	}
	if n := h.network.count(); n != 0 {
		h.t.Errorf("%d networks are still attached", n)
	}
	if n := h.network.forwarded(); n != 0 {
		h.t.Errorf("%d pods still have port-forward", n)
	}
	entries, _ := os.ReadDir(h.config.StateDir)
	for _, entry := range entries {
		if entry.Name() != "devices" { // the devices' locks are the node's
			h.t.Errorf("state directory still holds %s", entry.Name())
		}
	}
	h.checkGivenBack()
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// testLogger shows the shim's log when the test fails.
func testLogger(t *testing.T) *log.Entry {
	t.Helper()
	logger := logrus.New()
	logger.SetLevel(logrus.DebugLevel)
	logger.SetOutput(testWriter{t})
	return logrus.NewEntry(logger)
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(line []byte) (int, error) {
	w.t.Log(strings.TrimRight(string(line), "\n"))
	return len(line), nil
}

// goroutines counts the goroutines that run the shim's code.
func goroutines() int {
	buffer := make([]byte, 1<<20)
	buffer = buffer[:runtime.Stack(buffer, true)]
	count := 0
	for stack := range strings.SplitSeq(string(buffer), "\n\n") {
		if strings.Contains(stack, "coffer/shim/task.") || strings.Contains(stack, "coffer/shim/sandbox.") {
			count++
		}
	}
	return count
}

// checkGoroutines gives goroutines that are on their way out a moment.
func checkGoroutines(t *testing.T, before int) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for goroutines() > before {
		if time.Now().After(deadline) {
			buffer := make([]byte, 1<<20)
			t.Errorf("%d goroutines of the shim are left:\n%s", goroutines()-before, buffer[:runtime.Stack(buffer, true)])
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func fakeAttachment() *network.Attachment {
	return &network.Attachment{
		Interfaces: []network.Interface{{
			Name: "eth0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, MTU: 1500,
			Addresses: []netip.Prefix{netip.MustParsePrefix("10.244.0.7/24")},
		}},
		Routes: []network.Route{{
			Destination: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr("10.244.0.1"), Device: "eth0",
		}},
	}
}
