package integration

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coffer-project/coffer/integration/harness"
)

// lifeBudget bounds one step; it only ends tests that hang.
const lifeBudget = 3 * time.Minute

// imageCount keeps the images of repeated tests apart, and with them their keys.
var imageCount atomic.Int64

// lab is a pod, and the image that containers in it run.
type lab struct {
	node  *harness.Node
	pod   *harness.Pod
	image string

	count int
}

// newLab runs a pod under handler, which is removed when the test ends, and pulls image for it. edit may be nil.
func newLab(t *testing.T, node *harness.Node, handler, image string, edit func(*runtime.PodSandboxConfig)) *lab {
	t.Helper()
	annotations, err := node.PodAnnotations(harness.Guest{})
	if err != nil {
		t.Fatal(err)
	}
	config := node.CRI.PodConfig(slug(t), annotations)
	if edit != nil {
		edit(config)
	}
	l := &lab{node: node, image: image}
	ctx := l.ctx(t)
	if l.pod, err = node.CRI.RunPod(ctx, handler, config); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.remove(t) })
	if err := l.pod.Pull(ctx, image); err != nil {
		t.Fatal(err)
	}
	return l
}

// slug makes a name of the test's for things that allow few characters.
func slug(t *testing.T) string {
	t.Helper()
	return strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(t.Name()))
}

// encryptedImage encrypts a busybox image into the node's http registry and returns its reference.
func encryptedImage(t *testing.T, node *harness.Node) string {
	t.Helper()
	repository := fmt.Sprintf("life/%s-%d", slug(t), imageCount.Add(1))
	reference := node.HTTP.Host + "/" + repository + ":v1"
	if err := node.Ctl(t.Context(), true, "image", "encrypt", "oci:"+busyboxLayout(t, node).Dir, reference,
		"--key-id", "kbs:///"+repository+"/key", "--plain-http",
		"--kbs-url", node.Broker.URL, "--kbs-ca", node.CA.Path, "--admin-key", node.Broker.AdminKey); err != nil {
		t.Fatal(err)
	}
	return reference
}

// ctx ends with the test, or when it hangs.
func (l *lab) ctx(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), lifeBudget)
	t.Cleanup(cancel)
	return ctx
}

// remove ends the pod; nothing may be left of it. It is safe to repeat.
func (l *lab) remove(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), lifeBudget)
	defer cancel()
	if err := l.pod.Remove(ctx); err != nil {
		t.Error(err)
	}
}

// create creates a container of the lab's image; it is removed when the test ends. edit may be nil.
func (l *lab) create(t *testing.T, edit func(*runtime.ContainerConfig), command ...string) *harness.Container {
	t.Helper()
	c, err := l.tryCreate(t, edit, command...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (l *lab) tryCreate(t *testing.T, edit func(*runtime.ContainerConfig), command ...string) (*harness.Container, error) {
	t.Helper()
	l.count++
	name := fmt.Sprintf("c%d", l.count)
	config := &runtime.ContainerConfig{
		Metadata: &runtime.ContainerMetadata{Name: name},
		Image:    &runtime.ImageSpec{Image: l.image, UserSpecifiedImage: l.image, RuntimeHandler: l.pod.Handler},
		Command:  command, LogPath: name + ".log",
		Linux: &runtime.LinuxContainerConfig{
			Resources: &runtime.LinuxContainerResources{},
			SecurityContext: &runtime.LinuxContainerSecurityContext{
				NamespaceOptions: l.pod.Config.GetLinux().GetSecurityContext().GetNamespaceOptions(),
			},
		},
	}
	if edit != nil {
		edit(config)
	}
	c, err := l.pod.CreateFrom(l.ctx(t), config)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { l.removeContainer(t, c) })
	return c, nil
}

// removeContainer ends a container, by force if need be. It is safe to repeat.
func (l *lab) removeContainer(t *testing.T, c *harness.Container) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), lifeBudget)
	defer cancel()
	if _, err := l.node.CRI.Runtime.RemoveContainer(ctx, &runtime.RemoveContainerRequest{ContainerId: c.ID}); err != nil {
		t.Errorf("remove container %s: %v", c.ID, err)
	}
}

// start creates and starts a container.
func (l *lab) start(t *testing.T, edit func(*runtime.ContainerConfig), command ...string) *harness.Container {
	t.Helper()
	c := l.create(t, edit, command...)
	if err := c.Start(l.ctx(t)); err != nil {
		t.Fatal(err)
	}
	return c
}

// sleeper starts a container that does nothing, for others to look into.
func (l *lab) sleeper(t *testing.T, edit func(*runtime.ContainerConfig)) *harness.Container {
	t.Helper()
	return l.start(t, edit, "/bin/sleep", "100000")
}

// wait waits for the container's exit.
func (l *lab) wait(t *testing.T, c *harness.Container) *runtime.ContainerStatus {
	t.Helper()
	status, err := c.Wait(l.ctx(t))
	if err != nil {
		t.Fatal(err)
	}
	return status
}

// sh runs a script in the container, which must succeed, and returns what it wrote without the last newline.
func (l *lab) sh(t *testing.T, c *harness.Container, script string) string {
	t.Helper()
	resp, err := c.ExecSync(l.ctx(t), "/bin/sh", "-c", script)
	if err != nil {
		t.Fatalf("%s: %v", script, err)
	}
	if resp.ExitCode != 0 {
		t.Fatalf("%s: exit status %d, stdout %q, stderr %q", script, resp.ExitCode, resp.Stdout, resp.Stderr)
	}
	return strings.TrimSuffix(string(resp.Stdout), "\n")
}

// says waits until the container has written text to its log.
func (l *lab) says(t *testing.T, c *harness.Container, text string) {
	t.Helper()
	err := harness.Eventually(l.ctx(t), func(context.Context) error {
		output, err := c.Output()
		if err == nil && !strings.Contains(output, text) {
			err = fmt.Errorf("container %s has not said %q but %q", c.ID, text, output)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
