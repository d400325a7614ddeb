package integration

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coffer-project/coffer/integration/harness"
	"github.com/coffer-project/coffer/integration/registrytest"
)

// TestPolicy runs pods under the policy that cofferctl writes for them, and under the strict default: what the owner wants works on a
// whole node, and what he does not want fails with words that he understands.
func TestPolicy(t *testing.T) {
	node := sharedNode(t)
	t.Run("pods", func(t *testing.T) {
		t.Run("generated", func(t *testing.T) {
			t.Parallel()
			testGeneratedPolicy(t, node)
		})
		t.Run("strict", func(t *testing.T) {
			t.Parallel()
			testStrictPolicy(t, node)
		})
	})
	if err := node.Leftovers(); err != nil {
		t.Error(err)
	}
}

// judged is a shop with an image that prints its arguments. It holds the shop's name, so that no other shop has had the same image: of an
// image volume the node knows the digest, and takes one of the names that the image has there.
func judged(t *testing.T, node *harness.Node) (*shop, string, registrytest.Layer) {
	t.Helper()
	registry, base := openShop(t, node), busyboxLayer(t, node)
	return registry, registry.put("judged", judgedImage(base, registry.host())), base
}

func judgedImage(base registrytest.Layer, text string) *registrytest.Image {
	return registrytest.NewImage([]registrytest.Layer{base, hello(registrytest.Gzip, text)}, func(c *ocispec.Image) {
		c.Config = ocispec.ImageConfig{Entrypoint: []string{"/bin/sh", "-c", `echo "$MODE" "$@"; sleep 1000`, "sh"}, Cmd: []string{"by", "image"}, Env: []string{"PATH=/bin", "MODE=safe"}}
	}, nil)
}

// runJudgedPod starts a pod as kubelet does: its containers do not see one another's processes.
func runJudgedPod(t *testing.T, node *harness.Node, name string, guest harness.Guest) *harness.Pod {
	t.Helper()
	annotations, err := node.PodAnnotations(guest)
	if err != nil {
		t.Fatal(err)
	}
	config := node.CRI.PodConfig(name, annotations)
	config.Linux = &runtime.LinuxPodSandboxConfig{SecurityContext: &runtime.LinuxSandboxSecurityContext{
		NamespaceOptions: &runtime.NamespaceOption{Pid: runtime.NamespaceMode_CONTAINER},
	}}
	return runPod(t, node, config)
}

func containerOf(pod *harness.Pod, name, reference string, edit func(*runtime.ContainerConfig)) *runtime.ContainerConfig {
	config := &runtime.ContainerConfig{
		Metadata: &runtime.ContainerMetadata{Name: name},
		Image:    &runtime.ImageSpec{Image: reference, UserSpecifiedImage: reference, RuntimeHandler: pod.Handler},
		LogPath:  name + ".log",
		Linux: &runtime.LinuxContainerConfig{SecurityContext: &runtime.LinuxContainerSecurityContext{
			NamespaceOptions: &runtime.NamespaceOption{Pid: runtime.NamespaceMode_CONTAINER},
		}},
	}
	if edit != nil {
		edit(config)
	}
	return config
}

// startPolicy creates and starts a container. After a refusal nothing of it is left.
func startPolicy(t *testing.T, node *harness.Node, pod *harness.Pod, config *runtime.ContainerConfig) (*harness.Container, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), criTimeout)
	defer cancel()
	c, err := pod.CreateFrom(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	refused := c.Start(ctx)
	if refused != nil {
		if err := drop(ctx, node, c); err != nil {
			t.Error(err)
		}
	}
	return c, refused
}

// printed waits until a container has printed something.
func printed(t *testing.T, c *harness.Container, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), criTimeout)
	defer cancel()
	var got string
	if err := harness.Eventually(ctx, func(context.Context) (err error) {
		if got, err = c.Output(); err == nil && got == "" {
			err = os.ErrNotExist
		}
		return err
	}); err != nil || got != want {
		t.Errorf("the container printed %q, %v; want %q", got, err, want)
	}
}

func testGeneratedPolicy(t *testing.T, node *harness.Node) {
	registry, reference, base := judged(t, node)
	dir := t.TempDir()
	manifest, made := filepath.Join(dir, "pod.yaml"), filepath.Join(dir, "policy.rego")
	text := "kind: Pod\nspec:\n  volumes: [{name: model, image: {reference: \"" + reference + "\"}}]\n  initContainers:\n  - {name: sidecar, image: \"" + reference + "\", restartPolicy: Always}\n" +
		"  containers:\n  - {name: app, image: \"" + reference + "\", args: [by, pod], env: [{name: MODE, value: own}], livenessProbe: {exec: {command: [/bin/cat, /model/hello]}},\n" +
		"     volumeMounts: [{name: model, mountPath: /model}]}\n"
	if err := os.WriteFile(manifest, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := node.Ctl(t.Context(), true, "policy", "generate", "--plain-http", "--no-logs", "sidecar", "--out", made, manifest); err != nil {
		t.Fatal(err)
	}
	policy, err := os.ReadFile(made)
	if err != nil {
		t.Fatal(err)
	}
	pod := runJudgedPod(t, node, "generated", harness.Guest{PlainRegistries: []string{registry.host()}, Policy: string(policy)})
	pull(t, pod, reference)
	app := func(c *runtime.ContainerConfig) {
		c.Args, c.Envs = []string{"by", "pod"}, []*runtime.KeyValue{{Key: "MODE", Value: []byte("own")}}
		c.Mounts = []*runtime.Mount{{ContainerPath: "/model", Readonly: true, Image: &runtime.ImageSpec{Image: reference}}}
	}
	_, refused := startPolicy(t, node, pod, containerOf(pod, "app", reference, app))
	wantRefused(t, refused, "blocked by policy: container app is to run beside sidecar; container app is to start after sidecar")
	sidecar, refused := startPolicy(t, node, pod, containerOf(pod, "sidecar", reference, nil))
	if refused != nil {
		t.Fatal(refused)
	}
	_, refused = startPolicy(t, node, pod, containerOf(pod, "app", reference, func(c *runtime.ContainerConfig) { app(c); c.Args[1] = "host" }))
	wantRefused(t, refused, "blocked by policy: command and arguments are others")
	other := registry.put("other", judgedImage(base, "other"))
	pull(t, pod, other)
	_, refused = startPolicy(t, node, pod, containerOf(pod, "app", reference, func(c *runtime.ContainerConfig) {
		app(c)
		c.Mounts[0].Image = &runtime.ImageSpec{Image: other}
	}))
	wantRefused(t, refused, "blocked by policy: an image is mounted as a volume at", "and is not one of the pod's; mount at /model")
	c, refused := startPolicy(t, node, pod, containerOf(pod, "app", reference, app))
	if refused != nil {
		t.Fatal(refused)
	}
	printed(t, c, "own by pod\n")
	ctx, cancel := context.WithTimeout(t.Context(), criTimeout)
	defer cancel()
	if out, err := c.ExecSync(ctx, "/bin/cat", "/model/hello"); err != nil || string(out.Stdout) != registry.host() {
		t.Errorf("the probe: %v, %v", out, err)
	}
	_, err = c.ExecSync(ctx, "/bin/sh", "-c", "echo in")
	wantRefused(t, err, "ExecProcess is blocked by policy: this program is not among those that may be run in the container")
	// Its program runs as well as the app's, and what it prints stays in the guest.
	if status, err := sidecar.Status(ctx); err != nil || status.State != runtime.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the sidecar: %v, %v", status, err)
	}
	if out, err := sidecar.Output(); err != nil || strings.Contains(out, "safe") {
		t.Errorf("the host reads of the sidecar: %q, %v", out, err)
	}
	if err := c.Stop(ctx, 0); err != nil {
		t.Fatal(err)
	}

	if moved := registry.put("judged", judgedImage(base, "two")); moved != reference {
		t.Fatalf("%s is not %s", moved, reference)
	}
	pull(t, pod, reference)
	_, refused = startPolicy(t, node, pod, containerOf(pod, "app", reference, func(c *runtime.ContainerConfig) { app(c); c.Metadata.Attempt = 1 }))
	wantRefused(t, refused, "blocked by policy: ", "the image that is asked for is another one")
}

func testStrictPolicy(t *testing.T, node *harness.Node) {
	registry, reference, _ := judged(t, node)
	pod := runJudgedPod(t, node, "strict", harness.Guest{PlainRegistries: []string{registry.host()}, Strict: true})
	pull(t, pod, reference)
	c, refused := startPolicy(t, node, pod, containerOf(pod, "app", reference, func(c *runtime.ContainerConfig) {
		c.Envs = []*runtime.KeyValue{{Key: "KUBERNETES_SERVICE_HOST", Value: []byte("10.96.0.1")}}
	}))
	if refused != nil {
		t.Fatal(refused)
	}
	printed(t, c, "safe by image\n")
	ctx, cancel := context.WithTimeout(t.Context(), criTimeout)
	defer cancel()
	_, err := c.ExecSync(ctx, "/bin/true")
	wantRefused(t, err, "nobody may run further programs in containers", "cofferctl policy generate")
	_, refused = startPolicy(t, node, pod, containerOf(pod, "args", reference, func(c *runtime.ContainerConfig) { c.Args = []string{"by", "host"} }))
	wantRefused(t, refused, "command and arguments are not those of the verified image")
	_, refused = startPolicy(t, node, pod, containerOf(pod, "env", reference, func(c *runtime.ContainerConfig) {
		c.Envs = []*runtime.KeyValue{{Key: "LD_PRELOAD", Value: []byte("/evil.so")}}
	}))
	wantRefused(t, refused, `variable "LD_PRELOAD" is neither`)
}
