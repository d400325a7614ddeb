package integration

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coffer-project/coffer/integration/harness"
	"github.com/coffer-project/coffer/integration/registrytest"
	"github.com/coffer-project/coffer/integration/require"
	"github.com/coffer-project/coffer/owner/extension"
)

// TestExtension gives guests an extension image by the shim's configuration: a good one, and one that the host has changed.
func TestExtension(t *testing.T) {
	t.Parallel()
	mkfs := require.Program(t, "mkfs.erofs", "install erofs-utils")
	dir := t.TempDir()
	tree, erofs, image := filepath.Join(dir, "tree"), filepath.Join(dir, "erofs"), filepath.Join(dir, "image")
	if err := os.MkdirAll(filepath.Join(tree, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(mkfs, "-T0", erofs, tree).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	param, err := extension.Pack(t.Context(), "tools", erofs, image)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	data[bytes.Index(data, []byte("\xe2\xe1\xf5\xe0"))+4] ^= 1
	changed := filepath.Join(dir, "changed")
	if err := os.WriteFile(changed, data, 0o600); err != nil {
		t.Fatal(err)
	}
	handler := func(file string) string {
		_, verity, _ := strings.Cut(param, "=")
		return fmt.Sprintf("[hypervisor]\nguest_extension_images = [{ name = \"tools\", path = %q, verity_params = %q }]\n", file, verity)
	}
	node := ownNode(t, harness.Options{Handlers: map[string]string{"good": handler(image), "changed": handler(changed)}})
	registry := openShop(t, node)
	reference := registry.put("tools", registrytest.NewImage([]registrytest.Layer{busyboxLayer(t, node)}, nil, nil))
	annotations, err := node.PodAnnotations(harness.Guest{PlainRegistries: []string{registry.host()}})
	if err != nil {
		t.Fatal(err)
	}
	edit := func(config *runtime.PodSandboxConfig) { config.Annotations = annotations }
	t.Run("good", func(t *testing.T) {
		l := newLab(t, node, "good", reference, edit)
		if got := l.sh(t, l.sleeper(t, nil), "echo runs"); got != "runs" {
			t.Errorf("container says %q", got)
		}
	})
	t.Run("changed", func(t *testing.T) {
		config := node.CRI.PodConfig(slug(t), annotations)
		pod, err := node.CRI.RunPod(t.Context(), "changed", config)
		if err == nil {
			t.Error("the pod runs")
			err = pod.Remove(t.Context())
		}
		if err == nil || !strings.Contains(err.Error(), "extension tools: mount it: its disk does not hold what the kernel command line promises") {
			t.Errorf("error: %v", err)
		}
	})
}
