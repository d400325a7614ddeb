package harness

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-project/coffer/integration/registrytest"
)

// PauseImage is the sandbox image of handlers that need one.
const PauseImage = NodeIP + ":5000/sandbox:3.10"

// PauseScript is the program of PauseImage, /pause: the kernel appends its path, and tail waits for more of it.
const PauseScript = "#!/bin/tail -f"

// Ctl runs cofferctl; inside means in the node's network, where its registries and broker are.
func (n *Node) Ctl(ctx context.Context, inside bool, args ...string) error {
	cmd := exec.CommandContext(ctx, n.Tools.Ctl, args...)
	if inside {
		cmd = exec.CommandContext(ctx, "nsenter", n.ns.enter(n.Tools.Ctl, args)...)
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("cofferctl %v: %w: %s", args, err, out)
	}
	return nil
}

// pushPause puts a pause image into the http registry: the real one cannot be assumed to be reachable. As with that, what it
// starts tells what it is, and not its name. Its process is not called sleep, for which tests look in the process namespace
// that it shares with a pod's containers.
func (n *Node) pushPause(ctx context.Context) error {
	dir := n.path("pause")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	layout, err := NewLayout(dir, ocispec.ImageConfig{Entrypoint: []string{"/pause"}})
	if err != nil {
		return err
	}
	busybox, err := os.ReadFile(n.Tools.Busybox)
	if err != nil {
		return fmt.Errorf("read busybox: %w; run make setup", err)
	}
	// Not the layer of the test images: containerd shares snapshots by content, and this image is unpacked on the host.
	if err := layout.AddLayer(registrytest.NewLayer(registrytest.Gzip,
		registrytest.Entry{Name: "bin/"}, registrytest.Entry{Name: "bin/tail", Body: string(busybox), Mode: 0o755},
		registrytest.Entry{Name: "pause", Body: PauseScript + "\n", Mode: 0o755},
	)); err != nil {
		return err
	}
	return n.Ctl(ctx, true, "image", "copy", "oci:"+dir, PauseImage, "--plain-http")
}

// HostState are the folders in which the host's side of the node keeps anything: containerd (its content store too),
// the snapshotter, the shims with what they gave to QEMU, and the pods' logs.
func (n *Node) HostState() []string {
	var dirs []string
	for _, name := range []string{"containerd", "run", "snapshotter", "snapshotter-default", "shim", "s", "logs"} {
		if path := n.path(name); exists(path) {
			dirs = append(dirs, path)
		}
	}
	logs, _ := filepath.Glob(n.path("*.log")) // the pattern is well-formed
	return append(dirs, logs...)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
