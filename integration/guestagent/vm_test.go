package guestagent

import (
	"context"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/ttrpc"

	"github.com/coffer-project/coffer/integration/registrytest"
	"github.com/coffer-project/coffer/owner/guestimage"
	agentpb "github.com/coffer-project/coffer/proto/agent"
	guestpb "github.com/coffer-project/coffer/proto/guestpull/v1"
	"github.com/coffer-project/coffer/proto/initdata"
	"github.com/coffer-project/coffer/proto/mux"
	typespb "github.com/coffer-project/coffer/proto/types"
	"github.com/coffer-project/coffer/shim/transport"
)

const (
	bootTimeout = 90 * time.Second
	// QEMU's user network: the guest reaches this machine's loopback at the gateway.
	guestAddress, gateway, hardware = "10.0.2.15", "10.0.2.2", "52:54:00:12:34:56"
)

// image is the guest image with the real agent, built once.
var image struct {
	once      sync.Once
	dir, skip string
	err       error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if image.dir != "" {
		os.RemoveAll(image.dir)
	}
	os.Exit(code)
}

func needImage(t *testing.T) string {
	t.Helper()
	if os.Getenv("COFFER_TEST_TIER") == "unit" {
		t.Skip("COFFER_TEST_TIER=unit: tests that need a VM are not run")
	}
	image.once.Do(buildImage)
	if image.err != nil {
		t.Fatal(image.err)
	}
	if image.skip != "" && os.Getenv("COFFER_REQUIRE") != "" {
		t.Fatal(image.skip)
	}
	if image.skip != "" {
		t.Skip(image.skip)
	}
	return image.dir
}

// touchSources looks at the agent's sources: the go command notes that, and does not take an earlier result for this one when they have
// changed, which it cannot see otherwise because the agent is built by the test itself.
func touchSources() error {
	for _, dir := range []string{"../../cmd/coffer-guest", "../../guestpull", "../../proto"} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && filepath.Ext(path) == ".go" {
				_, err = os.Stat(path)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func buildImage() {
	if image.err = touchSources(); image.err != nil {
		return
	}
	cache := os.Getenv("COFFER_CACHE")
	if cache == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			image.skip = fmt.Sprintf("no cache folder: %v", err)
			return
		}
		cache = filepath.Join(base, "coffer")
	}
	kernels, err := filepath.Glob(filepath.Join(cache, "kernel", "linux-image-*.deb"))
	if err != nil || len(kernels) == 0 {
		image.skip = fmt.Sprintf("no kernel package in %s/kernel: run make setup", cache)
		return
	}
	runc := filepath.Join(cache, "bin", "runc")
	for _, need := range []string{runc, "/bin/busybox"} {
		if _, err := os.Stat(need); err != nil {
			image.skip = fmt.Sprintf("no %s: run make setup", need)
			return
		}
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		image.skip = "qemu-system-x86_64 is not on PATH: run make setup"
		return
	}
	if image.dir, image.err = os.MkdirTemp("", "guestagent"); image.err != nil {
		return
	}
	agent := filepath.Join(image.dir, "coffer-guest")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", agent, "github.com/coffer-project/coffer/cmd/coffer-guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		image.err = fmt.Errorf("build coffer-guest: %w: %s", err, out)
		return
	}
	_, _, image.err = guestimage.Build(context.Background(), guestimage.Inputs{Kernel: kernels[0], Runc: runc, Agent: agent}, image.dir)
}

// guest is a running VM with its agent and a registry that it can reach.
type guest struct {
	agent       agentpb.AgentServiceService
	diagnostics guestpb.DiagnosticsService
	registry    *registrytest.Registry
	host        string // the registry's name in references
}

// boot starts a guest and sets up its network.
func boot(t *testing.T) *guest {
	t.Helper()
	built := needImage(t)
	// Not t.TempDir: the path of a unix socket has room for about a hundred bytes.
	dir, err := os.MkdirTemp("", "vm")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	g := &guest{registry: registrytest.Start(t)}
	_, port, err := net.SplitHostPort(g.registry.Addr())
	must(t, err)
	g.host = net.JoinHostPort(gateway, port)
	disk := filepath.Join(dir, "initdata")
	writeInitData(t, disk, g.host)

	l, err := net.Listen("unix", filepath.Join(dir, "mux"))
	must(t, err)
	defer l.Close()
	startQEMU(t, built, disk, l.Addr().String())
	conn, err := l.Accept()
	must(t, err)
	serial, err := transport.NewSerial(conn)
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
	defer cancel()
	stream, err := serial.Dial(ctx, mux.AgentPort)
	must(t, err)
	client := ttrpc.NewClient(stream)
	t.Cleanup(func() { client.Close(); serial.Close() })
	g.agent, g.diagnostics = agentpb.NewAgentServiceClient(client), guestpb.NewDiagnosticsClient(client)

	_, err = g.agent.UpdateInterface(ctx, &agentpb.UpdateInterfaceRequest{Interface: &typespb.Interface{
		Name: "eth0", HwAddr: hardware, Mtu: 1500, IPAddresses: []*typespb.IPAddress{{Address: guestAddress, Mask: "24"}},
	}})
	must(t, err)
	_, err = g.agent.UpdateRoutes(ctx, &agentpb.UpdateRoutesRequest{Routes: &agentpb.Routes{Routes: []*typespb.Route{
		{Dest: "", Gateway: gateway, Device: "eth0"},
	}}})
	must(t, err)
	return g
}

func writeInitData(t *testing.T, path, registry string) {
	t.Helper()
	document := initdata.Document{Version: "0.1.0", Algorithm: "sha256", Data: map[string]string{
		initdata.KeyCDH: fmt.Sprintf("[[image.registry_config.registry]]\nlocation = %q\ninsecure = true\n", registry),
	}}
	raw, err := document.Encode()
	must(t, err)
	content, err := initdata.EncodeDisk(raw)
	must(t, err)
	must(t, os.WriteFile(path, content, 0o600))
}

func startQEMU(t *testing.T, built, disk, socket string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "qemu-system-x86_64",
		"-accel", "tcg", "-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-serial", "stdio",
		"-M", "q35", "-cpu", "max", "-smp", "2", "-m", "512",
		"-kernel", filepath.Join(built, guestimage.VmlinuxName), "-initrd", filepath.Join(built, guestimage.InitrdName),
		"-append", "console=ttyS0 quiet panic=-1 agent.log=debug",
		"-device", "virtio-serial-pci", "-chardev", "socket,id=c0,path="+socket,
		"-device", "virtserialport,chardev=c0,name="+mux.PortName,
		"-drive", "file="+disk+",format=raw,if=none,id=d0,readonly=on", "-device", "virtio-blk-pci,drive=d0",
		"-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,mac="+hardware,
	)
	var console strings.Builder
	cmd.Stdout, cmd.Stderr = &console, &console
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Wait() // t.Context is over by now, which ends the VM
		if t.Failed() {
			t.Logf("console:\n%s", console.String())
		}
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
