package image_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containers/ocicrypt/blockcipher"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-project/coffer/guestpull/decrypt"
	"github.com/coffer-project/coffer/guestpull/image"
	"github.com/coffer-project/coffer/guestpull/registry"
	"github.com/coffer-project/coffer/guestpull/store"
	"github.com/coffer-project/coffer/guestpull/unpack"
	"github.com/coffer-project/coffer/guestpull/verify"
	"github.com/coffer-project/coffer/integration/registrytest"
	"github.com/coffer-project/coffer/integration/require"
	"github.com/coffer-project/coffer/proto/kbs"
	"github.com/coffer-project/coffer/proto/keyprovider"
)

const keyURI = "kbs:///default/image/test"

// fakeKeys is a broker that releases keys from a map.
type fakeKeys map[string][]byte

func (k fakeKeys) Resource(_ context.Context, uri string) ([]byte, error) {
	key, ok := k[uri]
	if !ok {
		return nil, fmt.Errorf("broker has no %s: %w", uri, errdefs.ErrNotFound)
	}
	return key, nil
}

func kek() []byte {
	sum := sha256.Sum256([]byte("test key"))
	return sum[:]
}

// encrypt makes the encrypted twin of a layer, with ocicrypt's own cipher.
func encrypt(t *testing.T, l registrytest.Layer, wrap keyprovider.WrapType) registrytest.Layer {
	t.Helper()
	h, err := blockcipher.NewLayerBlockCipherHandler()
	if err != nil {
		t.Fatal(err)
	}
	r, finish, err := h.Encrypt(strings.NewReader(string(l.Blob)), blockcipher.AES256CTR)
	if err != nil {
		t.Fatal(err)
	}
	if l.Blob, err = io.ReadAll(r); err != nil {
		t.Fatal(err)
	}
	opts, err := finish()
	if err != nil {
		t.Fatal(err)
	}
	private, err := json.Marshal(opts.Private)
	if err != nil {
		t.Fatal(err)
	}
	public, err := json.Marshal(opts.Public)
	if err != nil {
		t.Fatal(err)
	}
	uri, err := kbs.ParseResourceURI(keyURI)
	if err != nil {
		t.Fatal(err)
	}
	packet, err := keyprovider.Seal(kek(), uri, wrap, private)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := packet.Encode()
	if err != nil {
		t.Fatal(err)
	}
	l.Desc = registrytest.Descriptor(l.Desc.MediaType+"+encrypted", l.Blob)
	l.Desc.Annotations = map[string]string{
		keyprovider.LayerAnnotation:            base64.StdEncoding.EncodeToString(raw),
		"org.opencontainers.image.enc.pubopts": base64.StdEncoding.EncodeToString(public),
	}
	return l
}

// newPuller plugs the real stages together.
func newPuller(t *testing.T, r *registrytest.Registry, keys decrypt.KeySource, opts ...image.Option) (*image.Puller, string) {
	t.Helper()
	cfg := registry.Config{ExtraRoots: r.CA(), Attempts: 2}
	if r.CA() == nil {
		cfg.Registries = []registry.Registry{{Prefix: r.Addr(), PlainHTTP: true}}
	}
	client, err := registry.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	s, err := store.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return image.New(client, verify.New(verify.DefaultLimits()), decrypt.New(keys),
		unpack.New(unpack.DefaultLimits(), unpack.WithSpace(s.Free)), s, append(opts, image.WithPlatform("linux/amd64"))...), dir
}

// wantEmpty fails when anything of a pull is left in a store.
func wantEmpty(t *testing.T, dir string) {
	t.Helper()
	for _, sub := range []string{"staging", "layers"} {
		entries, err := os.ReadDir(filepath.Join(dir, sub))
		if err != nil {
			t.Fatal(err)
		}
		if len(entries) != 0 {
			t.Errorf("%s holds %d entries, want none", sub, len(entries))
		}
	}
}

func readFile(t *testing.T, layers []string, name string) string {
	t.Helper()
	for _, layer := range slices.Backward(layers) {
		raw, err := os.ReadFile(filepath.Join(layer, name))
		if err == nil {
			return string(raw)
		}
	}
	t.Fatalf("no layer has %s", name)
	return ""
}

func TestPull(t *testing.T) {
	require.Root(t)
	for _, packing := range []string{registrytest.Plain, registrytest.Gzip, registrytest.Zstd} {
		for _, wrap := range []keyprovider.WrapType{"", keyprovider.WrapGCM, keyprovider.WrapCTR} {
			t.Run(fmt.Sprintf("%s,%s", packing, wrap), func(t *testing.T) {
				r := registrytest.Start(t)
				layers := []registrytest.Layer{
					registrytest.NewLayer(packing, registrytest.Files(map[string]string{"hello": "one", "etc/a": strings.Repeat("a", 1<<20)})...),
					registrytest.NewLayer(packing, registrytest.Files(map[string]string{"hello": "two"})...),
				}
				if wrap != "" {
					for i := range layers {
						layers[i] = encrypt(t, layers[i], wrap)
					}
				}
				img := registrytest.NewImage(layers, nil, nil)
				ref := r.Put("demo", "1", img)
				p, dir := newPuller(t, r, fakeKeys{keyURI: kek()})

				got, err := p.Pull(t.Context(), image.Request{ContainerID: "c1", Reference: ref})
				if err != nil {
					t.Fatal(err)
				}
				if got.ManifestDigest != img.Desc.Digest || len(got.Layers) != 2 || got.Config.Config.Cmd[0] != "/hello" {
					t.Errorf("got %+v", got)
				}
				if body := readFile(t, got.Layers, "hello"); body != "two" {
					t.Errorf("hello has %q", body)
				}
				if body := readFile(t, got.Layers, "etc/a"); len(body) != 1<<20 {
					t.Errorf("etc/a has %d bytes", len(body))
				}
				checkReport(t, got.Report, wrap != "")
				if err := p.Release(t.Context(), "c1"); err != nil {
					t.Fatal(err)
				}
				wantEmpty(t, dir)
			})
		}
	}
}

func checkReport(t *testing.T, r image.Report, encrypted bool) {
	t.Helper()
	if len(r.Phases) != 8 || len(r.Layers) != 2 || r.Layers[0].Encrypted != encrypted || r.Layers[0].Unpacked != 1<<20+3 {
		t.Errorf("report is %+v", r)
	}
	if encrypted != (len(r.KeyIDs) == 1) {
		t.Errorf("report has key ids %q", r.KeyIDs)
	}
	for _, phase := range r.Phases {
		busy := phase.Name == "fetch" || phase.Name == "apply" || phase.Name == "resolve"
		if busy && phase.Micros <= 0 {
			t.Errorf("phase %s took %d us", phase.Name, phase.Micros)
		}
	}
	if p := r.Proto(); len(p.GetLayers()) != 2 || p.GetManifestDigest() == "" {
		t.Errorf("proto is %v", p)
	}
}

func TestPullIndex(t *testing.T) {
	require.Root(t)
	r := registrytest.StartTLS(t)
	build := func(arch string) *registrytest.Image {
		return registrytest.NewImage([]registrytest.Layer{registrytest.NewLayer(registrytest.Gzip, registrytest.Files(map[string]string{"arch": arch})...)},
			func(c *ocispec.Image) { c.Architecture = arch }, nil)
	}
	amd, arm := build("amd64"), build("arm64")
	index := registrytest.NewIndex(map[string]*registrytest.Image{"linux/amd64": amd, "linux/arm64": arm})
	ref := r.Put("multi/arch", "", index)
	cases := map[string]struct {
		digest, platform string
		want             string
		wantErr          error
	}{
		"default platform":              {want: "amd64"},
		"other platform":                {platform: "linux/arm64", want: "arm64"},
		"digest of index":               {digest: index.Desc.Digest.String(), want: "amd64"},
		"digest of manifest":            {digest: amd.Desc.Digest.String(), want: "amd64"},
		"host names the other manifest": {digest: arm.Desc.Digest.String(), wantErr: errdefs.ErrFailedPrecondition},
		"host names nonsense":           {digest: "sha256:00", wantErr: errdefs.ErrFailedPrecondition},
		"no such platform":              {platform: "linux/s390x", wantErr: errdefs.ErrNotFound},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			p, dir := newPuller(t, r, nil)
			got, err := p.Pull(t.Context(), image.Request{ContainerID: "c", Reference: ref, Digest: tc.digest, Platform: tc.platform})
			if tc.wantErr != nil {
				if !errors.Is(err, tc.wantErr) {
					t.Fatalf("got %v, want %v", err, tc.wantErr)
				}
				wantEmpty(t, dir)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if body := readFile(t, got.Layers, "arch"); body != tc.want {
				t.Errorf("got image for %s, want %s", body, tc.want)
			}
		})
	}
}
