package guestagent

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/ttrpc"

	"github.com/coffer-project/coffer/integration/guestvm"
	"github.com/coffer-project/coffer/integration/registrytest"
	agentpb "github.com/coffer-project/coffer/proto/agent"
	guestpb "github.com/coffer-project/coffer/proto/guestpull/v1"
	"github.com/coffer-project/coffer/proto/initdata"
	"github.com/coffer-project/coffer/proto/mux"
	typespb "github.com/coffer-project/coffer/proto/types"
)

// QEMU's user network: the guest reaches this machine's loopback at the gateway.
const guestAddress, gateway, hardware = "10.0.2.15", "10.0.2.2", "52:54:00:12:34:56"

// image is the guest image with the real agent.
var image = guestvm.NewImage("cmd/coffer-guest")

func TestMain(m *testing.M) {
	code := m.Run()
	image.Remove()
	otherInit.Remove()
	os.Exit(code)
}

// guest is a running VM with its agent and a registry that it can reach.
type guest struct {
	agent       agentpb.AgentServiceService
	diagnostics guestpb.DiagnosticsService
	registry    *registrytest.Registry
	host        string // the registry's name in references
	vm          *guestvm.VM
}

// boot starts a guest and sets up its network.
func boot(t *testing.T) *guest {
	t.Helper()
	return bootWith(t, image, guestvm.Config{Params: []string{"agent.log=debug"}, MemoryMiB: 512})
}

// bootWith starts a guest of another image or shape.
func bootWith(t *testing.T, image *guestvm.Image, c guestvm.Config) *guest {
	t.Helper()
	g := &guest{registry: registrytest.Start(t)}
	_, port, err := net.SplitHostPort(g.registry.Addr())
	must(t, err)
	g.host = net.JoinHostPort(gateway, port)
	disk := filepath.Join(t.TempDir(), "initdata")
	writeInitData(t, disk, g.host)
	c.Disks, c.MAC = []string{disk}, hardware
	v := guestvm.Start(t, image, c)
	g.vm = v
	_, serial := v.Connect(t)
	ctx, cancel := context.WithTimeout(t.Context(), guestvm.Timeout)
	defer cancel()
	stream, err := serial.Dial(ctx, mux.AgentPort)
	must(t, err)
	client := ttrpc.NewClient(stream)
	t.Cleanup(func() { client.Close() })
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
		initdata.KeyCoffer: "[policy]\ndefault = \"development\"\n",
		initdata.KeyCDH:    fmt.Sprintf("[[image.registry_config.registry]]\nlocation = %q\ninsecure = true\n", registry),
	}}
	raw, err := document.Encode()
	must(t, err)
	content, err := initdata.EncodeDisk(raw)
	must(t, err)
	must(t, os.WriteFile(path, content, 0o600))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
