package imagetest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-project/coffer/guestpull/attest"
	"github.com/coffer-project/coffer/guestpull/decrypt"
	"github.com/coffer-project/coffer/guestpull/image"
	guestkbs "github.com/coffer-project/coffer/guestpull/kbs"
	"github.com/coffer-project/coffer/guestpull/registry"
	"github.com/coffer-project/coffer/guestpull/store"
	"github.com/coffer-project/coffer/guestpull/unpack"
	"github.com/coffer-project/coffer/guestpull/verify"
	"github.com/coffer-project/coffer/integration/registrytest"
	"github.com/coffer-project/coffer/integration/require"
	"github.com/coffer-project/coffer/owner/broker/brokertest"
	"github.com/coffer-project/coffer/owner/seal"
	"github.com/coffer-project/coffer/proto/kbs"
	"github.com/coffer-project/coffer/proto/keyprovider"
)

var keyID = kbs.ResourceURI{Repository: "default", Type: "image", Tag: "test"}

// fakeBroker takes keys from the owner and releases them to the guest.
type fakeBroker map[string][]byte

func (b fakeBroker) Put(_ context.Context, uri kbs.ResourceURI, key []byte) error {
	b[uri.String()] = key
	return nil
}

func (b fakeBroker) Resource(_ context.Context, uri string) ([]byte, error) {
	if key, ok := b[uri]; ok {
		return key, nil
	}
	return nil, fmt.Errorf("no resource %s: %w", uri, errdefs.ErrNotFound)
}

func newKEK() []byte {
	key := make([]byte, keyprovider.KEKSize)
	rand.Read(key)
	return key
}

func newPuller(t *testing.T, config registry.Config, keys decrypt.KeySource) *image.Puller {
	t.Helper()
	client, err := registry.New(config)
	if err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return image.New(client, verify.New(verify.DefaultLimits()), decrypt.New(keys),
		unpack.New(unpack.DefaultLimits(), unpack.WithSpace(s.Free)), s, image.WithPlatform("linux/amd64"))
}

func plain(addr string) registry.Config {
	return registry.Config{Registries: []registry.Registry{{Prefix: addr, PlainHTTP: true}}, Attempts: 2}
}

func newRegistry(t *testing.T, ref string, o seal.RegistryOptions) *seal.Registry {
	t.Helper()
	r, err := seal.NewRegistry(ref, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// sample is an image with a layer of each packing; arch is also the text in the topmost.
func sample(arch string) *registrytest.Image {
	return registrytest.NewImage([]registrytest.Layer{
		registrytest.NewLayer(registrytest.Plain, registrytest.Files(map[string]string{"base": strings.Repeat("b", 3<<20)})...),
		registrytest.NewLayer(registrytest.Gzip, registrytest.Files(map[string]string{"mid": "m"})...),
		registrytest.NewLayer(registrytest.Zstd, registrytest.Files(map[string]string{"top": arch})...),
	}, func(c *ocispec.Image) { c.Architecture = arch }, nil)
}

// wantTop fails unless the image's topmost layer has the text.
func wantTop(t *testing.T, img *image.Image, text string) {
	t.Helper()
	got, err := os.ReadFile(filepath.Join(img.Layers[len(img.Layers)-1], "top"))
	if err != nil || string(got) != text {
		t.Errorf("top is %q, %v; want %q", got, err, text)
	}
}

func TestSealedImageIsPulled(t *testing.T) {
	require.Root(t)
	for name, wrap := range map[string]keyprovider.WrapType{"A256GCM": keyprovider.WrapGCM, "A256CTR": keyprovider.WrapCTR} {
		t.Run(name, func(t *testing.T) {
			from, to := registrytest.Start(t), registrytest.StartTLS(t)
			to.RequireLogin("owner", "secret")
			login := func(string) (string, string, error) { return "owner", "secret", nil }
			src := newRegistry(t, from.Put("app", "1", sample("amd64")), seal.RegistryOptions{PlainHTTP: true})
			dst := newRegistry(t, to.Ref("sealed/app", "1"), seal.RegistryOptions{CA: to.CA(), Credentials: login})
			broker := fakeBroker{}
			result, err := seal.Encrypt(t.Context(), src, dst, seal.Options{KeyID: keyID, KEK: newKEK(), Keys: broker, Wrap: wrap})
			if err != nil {
				t.Fatal(err)
			}
			shown := func(context.Context, string) (registry.Credential, error) {
				return registry.Credential{User: "owner", Password: "secret"}, nil
			}
			p := newPuller(t, registry.Config{ExtraRoots: to.CA(), Credentials: shown}, broker)
			img, err := p.Pull(t.Context(), image.Request{ContainerID: "c", Reference: to.Ref("sealed/app", "1")})
			if err != nil {
				t.Fatal(err)
			}
			wantTop(t, img, "amd64")
			if img.ManifestDigest != result.Desc.Digest {
				t.Errorf("pulled %s, sealed %s", img.ManifestDigest, result.Desc.Digest)
			}
			if ids := img.Report.KeyIDs; len(ids) != 1 || ids[0] != keyID.String() {
				t.Errorf("key ids are %q", ids)
			}
			if bytes.Contains(allBlobs(to, img), bytes.Repeat([]byte("b"), 64)) {
				t.Error("a pushed blob has plaintext")
			}
		})
	}
}

// TestWithBroker has nothing in the place of anything: the owner hands the key to a key broker, and the guest attests to it.
func TestWithBroker(t *testing.T) {
	require.Root(t)
	r, broker := registrytest.Start(t), brokertest.Start(t, brokertest.Options{})
	o := seal.RegistryOptions{PlainHTTP: true}
	src := newRegistry(t, r.Put("app", "1", sample("amd64")), o)
	if _, err := seal.Encrypt(t.Context(), src, newRegistry(t, r.Ref("sealed", "1"), o), seal.Options{KeyID: keyID, KEK: newKEK(), Keys: broker.Admin(t)}); err != nil {
		t.Fatal(err)
	}
	client, err := guestkbs.New(guestkbs.Options{URL: broker.URL, Attester: attest.NewSample()})
	if err != nil {
		t.Fatal(err)
	}
	p := newPuller(t, plain(r.Addr()), client)
	for _, container := range []string{"one", "two"} {
		img, err := p.Pull(t.Context(), image.Request{ContainerID: container, Reference: r.Ref("sealed", "1")})
		if err != nil {
			t.Fatal(err)
		}
		wantTop(t, img, "amd64")
	}
	if timings := client.Timings(); timings.Handshakes != 1 || timings.Fetches != 1 {
		t.Errorf("two containers with three encrypted layers took %+v", timings)
	}
}

func allBlobs(r *registrytest.Registry, img *image.Image) []byte {
	var all []byte
	for _, l := range img.Report.Layers {
		blob, _ := r.GetBlob(l.Digest)
		all = append(all, blob...)
	}
	return all
}

func TestSealIndexThroughLayout(t *testing.T) {
	require.Root(t)
	r := registrytest.Start(t)
	index := registrytest.NewIndex(map[string]*registrytest.Image{"linux/amd64": sample("amd64"), "linux/arm64": sample("arm64")})
	ref := r.Put("multi", "1", index)
	opts := seal.RegistryOptions{PlainHTTP: true}
	dir := t.TempDir()
	broker := fakeBroker{}
	sealed := seal.NewLayout(dir, "v1")
	result, err := seal.Encrypt(t.Context(), newRegistry(t, ref, opts), sealed, seal.Options{KeyID: keyID, KEK: newKEK(), Keys: broker})
	if err != nil {
		t.Fatal(err)
	}
	if len(result.Images) != 2 {
		t.Fatalf("sealed %d images, want 2", len(result.Images))
	}
	// What is sealed already cannot be sealed again by mistake.
	_, err = seal.Encrypt(t.Context(), sealed, seal.NewLayout(t.TempDir(), ""), seal.Options{KeyID: keyID, KEK: newKEK()})
	if !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("sealing twice gave %v", err)
	}
	d, err := seal.Inspect(t.Context(), sealed)
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range d.Images {
		for _, l := range img.Layers {
			if !l.Encrypted || len(l.KeyIDs) != 1 || l.Fault != "" {
				t.Errorf("layer of %s is %+v", img.Platform, l)
			}
		}
	}
}

// startDistribution runs CNCF Distribution, which the project's set-up builds.
func startDistribution(t *testing.T) string {
	t.Helper()
	bin := require.Cached(t, "bin/registry")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	config := filepath.Join(t.TempDir(), "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %q}\n", t.TempDir(), addr)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), bin, "serve", config)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	deadline := time.Now().Add(10 * time.Second)
	for {
		resp, err := http.Get("http://" + addr + "/v2/") //nolint:noctx // a probe
		if err == nil {
			resp.Body.Close()
			return addr
		}
		if time.Now().After(deadline) {
			t.Fatalf("registry does not answer: %v\n%s", err, out.String())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestThroughDistribution(t *testing.T) {
	require.Root(t)
	addr := startDistribution(t)
	from := registrytest.Start(t)
	index := registrytest.NewIndex(map[string]*registrytest.Image{"linux/amd64": sample("amd64"), "linux/arm64": sample("arm64")})
	src := newRegistry(t, from.Put("multi", "1", index), seal.RegistryOptions{PlainHTTP: true})
	dst := newRegistry(t, addr+"/sealed/multi:1", seal.RegistryOptions{PlainHTTP: true})
	broker := fakeBroker{}
	for range 2 { // the second run finds the configuration there
		if _, err := seal.Encrypt(t.Context(), src, dst, seal.Options{KeyID: keyID, KEK: newKEK(), Keys: broker}); err != nil {
			t.Fatal(err)
		}
	}
	p := newPuller(t, plain(addr), broker)
	for _, arch := range []string{"amd64", "arm64"} {
		img, err := p.Pull(t.Context(), image.Request{ContainerID: arch, Reference: addr + "/sealed/multi:1", Platform: "linux/" + arch})
		if err != nil {
			t.Fatal(err)
		}
		wantTop(t, img, arch)
	}
	if _, err := seal.Encrypt(t.Context(), src, newRegistry(t, addr+"/sealed/one:1", seal.RegistryOptions{PlainHTTP: true}),
		seal.Options{KeyID: keyID, KEK: broker[keyID.String()], Platforms: []string{"linux/amd64"}}); err != nil {
		t.Fatal(err)
	}
	img, err := p.Pull(t.Context(), image.Request{ContainerID: "one", Reference: addr + "/sealed/one:1"})
	if err != nil {
		t.Fatal(err)
	}
	if img.TargetDigest != img.ManifestDigest {
		t.Error("one platform was asked for and an index was made")
	}
	wantTop(t, img, "amd64")
}
