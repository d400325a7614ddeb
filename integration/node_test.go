package integration

import (
	"os"
	"path/filepath"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-project/coffer/integration/harness"
	"github.com/coffer-project/coffer/integration/registrytest"
)

// busyboxLayout makes an image with busybox and further layers in a folder of the test.
func busyboxLayout(t *testing.T, node *harness.Node, layers ...registrytest.Layer) *harness.Layout {
	t.Helper()
	return configuredLayout(t, node, ocispec.ImageConfig{}, layers...)
}

// configuredLayout does the same with a configuration, to which it adds how busybox is run.
func configuredLayout(t *testing.T, node *harness.Node, config ocispec.ImageConfig, layers ...registrytest.Layer) *harness.Layout {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "image")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	config.Env, config.Cmd = []string{"PATH=/bin"}, []string{"/bin/sh"}
	layout, err := harness.NewLayout(dir, config)
	if err != nil {
		t.Fatal(err)
	}
	busybox, err := harness.Busybox(node.Tools.Busybox)
	if err != nil {
		t.Fatal(err)
	}
	for _, layer := range append([]registrytest.Layer{busybox}, layers...) {
		if err := layout.AddLayer(layer); err != nil {
			t.Fatal(err)
		}
	}
	return layout
}

// TestRunc runs an ordinary container beside Coffer's handlers: our plugin must not disturb the rest of the node.
func TestRunc(t *testing.T) {
	t.Parallel()
	node := sharedNode(t)
	reference := node.HTTP.Host + "/test/runc:v1"
	if err := node.Ctl(t.Context(), true, "image", "copy", "oci:"+busyboxLayout(t, node).Dir, reference, "--plain-http"); err != nil {
		t.Fatal(err)
	}
	pod, err := node.CRI.RunPod(t.Context(), "", node.CRI.PodConfig("runc", nil))
	if err != nil {
		t.Fatal(err)
	}
	if err := pod.Pull(t.Context(), reference); err != nil {
		t.Fatal(err)
	}
	container, err := pod.Create(t.Context(), "hello", reference, "/bin/echo", "hello")
	if err != nil {
		t.Fatal(err)
	}
	if output, err := container.Run(t.Context()); err != nil || output != "hello\n" {
		t.Fatalf("output = %q, %v; want hello", output, err)
	}
	if err := pod.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := node.Leftovers(); err != nil {
		t.Fatal(err)
	}
}
