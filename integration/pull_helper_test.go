package integration

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/coffer-project/coffer/integration/harness"
	"github.com/coffer-project/coffer/integration/registrytest"
	"github.com/coffer-project/coffer/owner/broker/brokertest"
	"github.com/coffer-project/coffer/owner/seal"
	"github.com/coffer-project/coffer/proto/kbs"
)

// criTimeout bounds one call: an emulated guest on a busy machine is slow, and some faults are times of silence.
const criTimeout = 4 * time.Minute

// shop is a registry of one test on the node, which may misbehave.
type shop struct {
	*registrytest.Registry
	server *harness.Server
}

func openShop(t *testing.T, node *harness.Node) *shop {
	t.Helper()
	s := &shop{Registry: registrytest.New()}
	var err error
	if s.server, err = node.Serve(s.Registry); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Close()
		s.server.Close()
	})
	return s
}

func (s *shop) host() string { return s.server.Host }

// put adds an image and returns its reference.
func (s *shop) put(repo string, img *registrytest.Image) string {
	s.Put(repo, "v1", img)
	return s.host() + "/" + repo + ":v1"
}

// sealed adds the encrypted twin of an image, made by the owner's own tool, and returns its reference. options may be nil;
// it changes what is encrypted and how.
func (s *shop) sealed(t *testing.T, repo, key string, kek []byte, img *registrytest.Image, options func(*seal.Options)) string {
	t.Helper()
	s.Put(repo+"-plain", "v1", img)
	id, err := kbs.ParseResourceURI(key)
	if err != nil {
		t.Fatal(err)
	}
	o := seal.Options{KeyID: id, KEK: kek}
	if options != nil {
		options(&o)
	}
	if _, err := seal.Encrypt(t.Context(), &shelf{s.Registry, repo + "-plain"}, &shelf{s.Registry, repo}, o); err != nil {
		t.Fatal(err)
	}
	return s.host() + "/" + repo + ":v1"
}

// manifest reads an image's manifest.
func (s *shop) manifest(t *testing.T, repo string) (m ocispec.Manifest) {
	t.Helper()
	_, raw, ok := s.GetManifest(repo, "v1")
	if !ok {
		t.Fatalf("registry has no %s", repo)
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

// change puts an edited manifest in the place of an image's own.
func (s *shop) change(t *testing.T, repo string, edit func(*ocispec.Manifest)) {
	t.Helper()
	m := s.manifest(t, repo)
	edit(&m)
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	s.PutManifest(repo, "v1", m.MediaType, raw)
}

// shelf is the image v1 of a repository, for owner/seal to read from and to write to.
type shelf struct {
	registry *registrytest.Registry
	repo     string
}

func (s *shelf) String() string { return s.repo }

func (s *shelf) Resolve(context.Context) (ocispec.Descriptor, error) {
	mediaType, raw, ok := s.registry.GetManifest(s.repo, "v1")
	if !ok {
		return ocispec.Descriptor{}, fmt.Errorf("image %s: %w", s.repo, errdefs.ErrNotFound)
	}
	return registrytest.Descriptor(mediaType, raw), nil
}

func (s *shelf) Fetch(_ context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	raw, ok := s.registry.GetBlob(desc.Digest)
	if !ok {
		_, raw, ok = s.registry.GetManifest(s.repo, desc.Digest.String())
	}
	if !ok {
		return nil, fmt.Errorf("content %s of %s: %w", desc.Digest, s.repo, errdefs.ErrNotFound)
	}
	return io.NopCloser(bytes.NewReader(raw)), nil
}

func (s *shelf) Exists(_ context.Context, desc ocispec.Descriptor) (bool, error) {
	_, ok := s.registry.GetBlob(desc.Digest)
	return ok, nil
}

func (s *shelf) Write(_ context.Context, r io.Reader) (digest.Digest, int64, error) {
	raw, err := io.ReadAll(r)
	if err != nil {
		return "", 0, err
	}
	d := digest.FromBytes(raw)
	s.registry.PutBlob(d, raw)
	return d, int64(len(raw)), nil
}

func (s *shelf) WriteManifest(_ context.Context, desc ocispec.Descriptor, raw []byte, tagged bool) error {
	name := desc.Digest.String()
	if tagged {
		name = "v1"
	}
	s.registry.PutManifest(s.repo, name, desc.MediaType, raw)
	return nil
}

// startBroker starts a key broker of the test's own on the node.
func startBroker(t *testing.T, node *harness.Node) *brokertest.Broker {
	t.Helper()
	listener, err := node.Listen()
	if err != nil {
		t.Fatal(err)
	}
	return brokertest.Start(t, brokertest.Options{Listener: listener})
}

// newKEK makes a key and, where a broker is given, stores it there.
func newKEK(t *testing.T, broker *brokertest.Broker, uri string) []byte {
	t.Helper()
	kek := make([]byte, 32)
	_, _ = rand.Read(kek) // never fails: documented by crypto/rand
	if broker != nil {
		broker.Put(t, uri, kek)
	}
	return kek
}

// runPullPod starts a pod for guest, with further annotations, which is removed at the end of the test.
func runPullPod(t *testing.T, node *harness.Node, name string, guest harness.Guest, further map[string]string) *harness.Pod {
	t.Helper()
	annotations, err := node.PodAnnotations(guest)
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(annotations, further)
	return runPod(t, node, node.CRI.PodConfig(name, annotations))
}

// runPod starts a pod, which is removed at the end of the test.
func runPod(t *testing.T, node *harness.Node, config *runtime.PodSandboxConfig) *harness.Pod {
	t.Helper()
	return runHandlerPod(t, node, "coffer", config)
}

// runHandlerPod is runPod with another handler.
func runHandlerPod(t *testing.T, node *harness.Node, handler string, config *runtime.PodSandboxConfig) *harness.Pod {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), criTimeout)
	defer cancel()
	pod, err := node.CRI.RunPod(ctx, handler, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), criTimeout)
		defer cancel()
		if err := pod.Remove(ctx); err != nil {
			t.Error(err)
		}
	})
	return pod
}

// drop removes a container, as kubelet does before it tries again.
func drop(ctx context.Context, node *harness.Node, c *harness.Container) error {
	_, err := node.CRI.Runtime.RemoveContainer(ctx, &runtime.RemoveContainerRequest{ContainerId: c.ID})
	return err
}

// try runs a command in a container of its own and returns its output, or the error with which it could not be started.
// faults are those of everything else.
func try(ctx context.Context, node *harness.Node, pod *harness.Pod, name, reference string, command ...string) (output string, refused, fault error) {
	ctx, cancel := context.WithTimeout(ctx, criTimeout)
	defer cancel()
	container, err := pod.Create(ctx, name, reference, command...)
	if err != nil {
		return "", nil, err
	}
	if refused = container.Start(ctx); refused != nil {
		return "", refused, drop(ctx, node, container)
	}
	status, err := container.Wait(ctx)
	if err != nil {
		return "", nil, err
	}
	if output, err = container.Output(); err != nil {
		return "", nil, err
	}
	if status.ExitCode != 0 {
		return output, nil, fmt.Errorf("container %s ended with exit code %d: %s", name, status.ExitCode, output)
	}
	return output, nil, drop(ctx, node, container)
}

// pullAndRun pulls an image and returns what a command in it prints.
func pullAndRun(t *testing.T, node *harness.Node, pod *harness.Pod, name, reference string, command ...string) string {
	t.Helper()
	pull(t, pod, reference)
	output, refused, fault := try(t.Context(), node, pod, name, reference, command...)
	if refused != nil || fault != nil {
		t.Fatalf("run %s: %v, %v", reference, refused, fault)
	}
	return output
}

func pull(t *testing.T, pod *harness.Pod, reference string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), criTimeout)
	defer cancel()
	if err := pod.Pull(ctx, reference); err != nil {
		t.Fatal(err)
	}
}

// wantRefused checks the words with which CRI tells that a container could not be started.
func wantRefused(t *testing.T, refused error, want ...string) {
	t.Helper()
	if refused == nil {
		t.Fatal("the container was started")
	}
	text := refused.Error()
	t.Log(text)
	for _, part := range want {
		if !strings.Contains(text, part) {
			t.Errorf("the error does not say %q", part)
		}
	}
	for _, part := range []string{"\n", "context canceled"} {
		if strings.Contains(text, part) {
			t.Errorf("the error says %q, which hides its cause", part)
		}
	}
}

// keep starts a container that runs until its pod ends, so that the layers of its image stay in the guest: images that
// are built on them cost the fetch of their other layers only.
func keep(t *testing.T, pod *harness.Pod, reference string) *harness.Container {
	t.Helper()
	pull(t, pod, reference)
	ctx, cancel := context.WithTimeout(t.Context(), criTimeout)
	defer cancel()
	container, err := pod.Create(ctx, "keep", reference, "/bin/sleep", "86400")
	if err != nil {
		t.Fatal(err)
	}
	if err := container.Start(ctx); err != nil {
		t.Fatal(err)
	}
	return container
}

func busyboxLayer(t *testing.T, node *harness.Node) registrytest.Layer {
	t.Helper()
	layer, err := harness.Busybox(node.Tools.Busybox)
	if err != nil {
		t.Fatal(err)
	}
	return layer
}

// noise is text that does not compress.
func noise(size int) string {
	raw := make([]byte, size)
	_, _ = rand.Read(raw) // never fails: documented by crypto/rand
	return string(raw)
}

// onlyLayer makes seal encrypt some layers, by number from 0.
func onlyLayer(numbers ...int) func(*seal.Options) {
	return func(o *seal.Options) { o.Layers = numbers }
}
