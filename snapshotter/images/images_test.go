package images

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/coffer-project/coffer/integration/require"
)

var linux = ocispec.Platform{OS: "linux", Architecture: "amd64"}

// daemon is a real containerd with nothing but content and images.
type daemon struct {
	t           *testing.T
	dir, socket string
	program     string
	process     *exec.Cmd
}

func newDaemon(t *testing.T) *daemon {
	t.Helper()
	require.Root(t)
	d := &daemon{t: t, program: require.Cached(t, "bin/containerd")}
	dir, err := os.MkdirTemp("", "cfr") //nolint:usetesting // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	d.dir, d.socket = dir, filepath.Join(dir, "c.sock")
	text := fmt.Sprintf("version = 3\nroot = '%[1]s/root'\nstate = '%[1]s/state'\nimports = []\n"+
		"disabled_plugins = ['io.containerd.grpc.v1.cri', 'io.containerd.cri.v1.images', 'io.containerd.cri.v1.runtime', 'io.containerd.nri.v1.nri']\n"+
		"[grpc]\n  address = '%[2]s'\n[ttrpc]\n  address = '%[2]s.ttrpc'\n[plugins.'io.containerd.shim.v1.manager']\n  socket_dir = '%[1]s/s'\n", dir, d.socket)
	if err := os.WriteFile(filepath.Join(dir, "config.toml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *daemon) start() {
	d.t.Helper()
	notify, err := net.ListenPacket("unixgram", filepath.Join(d.dir, "notify"))
	if err != nil {
		d.t.Fatal(err)
	}
	defer notify.Close()
	defer os.Remove(filepath.Join(d.dir, "notify"))
	d.process = exec.Command(d.program, "--config", filepath.Join(d.dir, "config.toml"), "--log-level", "error")
	d.process.Env = append(os.Environ(), "NOTIFY_SOCKET="+filepath.Join(d.dir, "notify"))
	d.process.Stderr = os.Stderr
	if err := d.process.Start(); err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(d.kill)
	if err := notify.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		d.t.Fatal(err)
	}
	for buf := make([]byte, 4096); ; {
		n, _, err := notify.ReadFrom(buf)
		if err != nil {
			d.t.Fatalf("containerd does not come up: %v", err)
		}
		if bytes.Contains(buf[:n], []byte("READY=1")) {
			return
		}
	}
}

func (d *daemon) kill() {
	if d.process == nil {
		return
	}
	_ = d.process.Process.Kill()
	_ = d.process.Wait()
	d.process = nil
}

func (d *daemon) ctr(ctx context.Context, args ...string) ([]byte, error) {
	args = append([]string{"--address", d.socket, "--namespace", "k8s.io"}, args...)
	return exec.CommandContext(ctx, require.Cached(d.t, "bin/ctr"), args...).CombinedOutput()
}

// layout is an OCI image layout as a tar archive.
type layout struct {
	blobs map[digest.Digest][]byte
}

func (l *layout) put(mediaType string, document any) ocispec.Descriptor {
	raw, ok := document.([]byte)
	if !ok {
		raw, _ = json.Marshal(document) // documents of this test have nothing that could not be written
	}
	d := digest.FromBytes(raw)
	l.blobs[d] = raw
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(raw))}
}

// image makes an image whose layers have the given media types.
func (l *layout) image(config ocispec.ImageConfig, platform ocispec.Platform, mediaTypes ...string) (ocispec.Descriptor, []digest.Digest) {
	c := ocispec.Image{Platform: platform, Config: config, RootFS: ocispec.RootFS{Type: "layers"}}
	manifest := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Annotations: map[string]string{"who": "test"},
	}
	for i, mediaType := range mediaTypes {
		blob := l.put(mediaType, fmt.Appendf(nil, "blob %d of %s", i, config.User))
		blob.Annotations = map[string]string{"layer": fmt.Sprint(i)}
		manifest.Layers = append(manifest.Layers, blob)
		// Two images share the content of their lowest layers.
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, digest.FromString(fmt.Sprint("content", i)))
	}
	manifest.Config = l.put(ocispec.MediaTypeImageConfig, c)
	desc := l.put(ocispec.MediaTypeImageManifest, manifest)
	desc.Platform = &platform
	return desc, identity.ChainIDs(c.RootFS.DiffIDs)
}

// write makes the archive, with one name for each target.
func (l *layout) write(t *testing.T, targets map[string]ocispec.Descriptor) string {
	t.Helper()
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for name, desc := range targets {
		desc.Annotations = map[string]string{"io.containerd.image.name": name}
		index.Manifests = append(index.Manifests, desc)
	}
	raw, err := json.Marshal(index)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`), "index.json": raw}
	for d, blob := range l.blobs {
		files["blobs/sha256/"+d.Encoded()] = blob
	}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for name, content := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "image.tar")
	if err := os.WriteFile(path, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestRealContainerd asks a containerd that imported images by itself, kills it and starts it again.
func TestRealContainerd(t *testing.T) {
	d := newDaemon(t)
	client, err := New(d.socket, linux)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx := namespaces.WithNamespace(t.Context(), "k8s.io")
	if _, err := client.Manifest(ctx, digest.FromString("x")); !errdefs.IsUnavailable(err) {
		t.Errorf("before containerd is there: %v", err)
	}

	l := &layout{blobs: map[digest.Digest][]byte{}}
	sealed, chains := l.image(ocispec.ImageConfig{User: "app:staff", Labels: map[string]string{"run": "guest"}}, linux,
		ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerGzip+"+encrypted")
	arm, _ := l.image(ocispec.ImageConfig{User: "arm"}, ocispec.Platform{OS: "linux", Architecture: "arm64"}, ocispec.MediaTypeImageLayerGzip)
	plain, _ := l.image(ocispec.ImageConfig{User: "1000"}, linux, ocispec.MediaTypeImageLayerGzip)
	both := l.put(ocispec.MediaTypeImageIndex, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{arm, sealed},
	})
	archive := l.write(t, map[string]ocispec.Descriptor{"example.test/sealed:1": both, "example.test/plain:1": plain})

	d.start()
	if out, err := d.ctr(ctx, "images", "import", "--no-unpack", "--all-platforms", "--local", archive); err != nil {
		t.Fatalf("import: %v: %s", err, out)
	}
	t.Run("answers", func(t *testing.T) { checkAnswers(ctx, t, client, sealed, both, plain, chains) })
	t.Run("needs a namespace", func(t *testing.T) {
		if _, err := client.Manifest(t.Context(), sealed.Digest); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("got %v", err)
		}
		other := namespaces.WithNamespace(t.Context(), "other")
		if found, err := client.Containing(other, chains[0]); err != nil || len(found) > 0 {
			t.Errorf("another namespace has %v, %v", found, err)
		}
	})

	d.kill()
	begin := time.Now()
	if _, err := client.Named(ctx, "example.test/plain:1"); !errdefs.IsUnavailable(err) {
		t.Errorf("while containerd is dead: %v", err)
	}
	if _, err := client.Containing(ctx, chains[0]); !errdefs.IsUnavailable(err) {
		t.Errorf("while containerd is dead: %v", err)
	}
	if spent := time.Since(begin); spent > 2*timeout {
		t.Errorf("two questions to a dead containerd took %s", spent)
	}
	d.start()
	if _, err := client.Named(ctx, "example.test/plain:1"); err != nil {
		t.Errorf("after containerd came back: %v", err)
	}
}

func checkContainers(ctx context.Context, t *testing.T, client *Client) {
	t.Helper()
	spec := func(image string) *anypb.Any {
		return &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Spec", Value: []byte(`{"annotations":{"` + annotationImage + `":"` + image + `"}}`)}
	}
	for id, tc := range map[string]struct {
		image string
		spec  *anypb.Any
		want  string
		fails bool
	}{
		"by-the-pod":        {image: "example.test/twin:1", spec: spec("example.test/plain:1"), want: "example.test/plain:1"},
		"by-a-short-name":   {image: "example.test/twin:1", spec: spec("busybox"), want: "docker.io/library/busybox:latest"},
		"by-tag-and-digest": {spec: spec("a.test/b:1@sha256:" + strings.Repeat("0", 64)), want: "a.test/b@sha256:" + strings.Repeat("0", 64)},
		"by-containerd":     {image: "example.test/twin:1", spec: spec("sha256:" + strings.Repeat("0", 64)), want: "example.test/twin:1"},
		"without-a-name":    {spec: spec("")},
		"no-json":           {spec: &anypb.Any{TypeUrl: "x", Value: []byte("{")}, fails: true},
	} {
		record := &containersapi.Container{ID: id, Image: tc.image, Spec: tc.spec, Runtime: &containersapi.Container_Runtime{Name: "io.containerd.runc.v2"}}
		if _, err := client.containers.Create(ctx, &containersapi.CreateContainerRequest{Container: record}); err != nil {
			t.Fatal(err)
		}
		got, err := client.Container(ctx, id)
		if tc.fails {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("container %s: %+v, %v", id, got, err)
			}
			continue
		}
		if err != nil || got.Image != tc.want || got.Runtime != "io.containerd.runc.v2" {
			t.Errorf("container %s: %+v, %v", id, got, err)
		}
	}
	if _, err := client.Container(ctx, "none"); !errdefs.IsNotFound(err) {
		t.Errorf("no such container: %v", err)
	}
}

func checkAnswers(ctx context.Context, t *testing.T, client *Client, sealed, both, plain ocispec.Descriptor, chains []digest.Digest) {
	t.Helper()
	for name, d := range map[string]digest.Digest{"manifest": sealed.Digest, "index": both.Digest, "cached": both.Digest} {
		image, err := client.Manifest(ctx, d)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if image.Manifest != sealed.Digest || image.Config.User != "app:staff" || image.Config.Labels["run"] != "guest" ||
			!image.Encrypted() || image.Layers[0].Encrypted() || image.Layers[1].Annotations["layer"] != "1" ||
			image.Annotations["who"] != "test" || image.Top() != chains[1] {
			t.Errorf("%s: %+v", name, image)
		}
	}
	for name, tc := range map[string]struct {
		chain digest.Digest
		want  []digest.Digest
	}{
		"a shared layer":       {chains[0], []digest.Digest{sealed.Digest, plain.Digest}},
		"a layer of one image": {chains[1], []digest.Digest{sealed.Digest}},
		"no such layer":        {digest.FromString("none"), nil},
	} {
		found, err := client.Containing(ctx, tc.chain)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var got []digest.Digest
		for _, image := range found {
			if image.Platform.Architecture == "amd64" {
				got = append(got, image.Manifest)
			}
		}
		slices.Sort(got)
		slices.Sort(tc.want)
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
	if r, err := client.Named(ctx, "example.test/sealed:1"); err != nil || r.Target != both.Digest {
		t.Errorf("record %+v, %v", r, err)
	}
	if _, err := client.Named(ctx, "example.test/none:1"); !errdefs.IsNotFound(err) {
		t.Errorf("no such name: %v", err)
	}
	if found, err := client.Targeting(ctx, plain.Digest); err != nil || len(found) != 1 || found[0].Name != "example.test/plain:1" {
		t.Errorf("names of the plain image: %v, %v", found, err)
	}
	for name, tc := range map[string]struct {
		manifest digest.Digest
		want     string
	}{
		"of an index": {sealed.Digest, "example.test/sealed:1"}, "of a manifest": {plain.Digest, "example.test/plain:1"},
		"none": {digest.FromString("none"), ""},
	} {
		if found, err := client.Names(ctx, tc.manifest); err != nil || strings.Join(found, " ") != tc.want {
			t.Errorf("names %s: %q, %v", name, found, err)
		}
	}
	for d, want := range map[digest.Digest]bool{plain.Digest: true, digest.FromString("none"): false} {
		if has, err := client.Has(ctx, d); err != nil || has != want {
			t.Errorf("has content %s: %v, %v", d, has, err)
		}
	}
	if _, err := client.Has(ctx, "not a digest"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("no digest: %v", err)
	}
	checkContainers(ctx, t, client)
	if _, err := client.Manifest(ctx, digest.FromString("none")); !errdefs.IsNotFound(err) {
		t.Errorf("no such manifest: %v", err)
	}
	if _, err := client.Manifest(ctx, "not a digest"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("no digest: %v", err)
	}
}
