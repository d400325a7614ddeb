package seal

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containers/ocicrypt"
	"github.com/containers/ocicrypt/config"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	rt "github.com/coffer-project/coffer/integration/registrytest"
	"github.com/coffer-project/coffer/proto/kbs"
	"github.com/coffer-project/coffer/proto/keyprovider"
)

var (
	testKey = bytes.Repeat([]byte{3}, keyprovider.KEKSize)
	testURI = kbs.ResourceURI{Repository: "default", Type: "image", Tag: "seal"}
)

// wrapper is a guest's key provider for ocicrypt itself.
type wrapper struct{}

func (wrapper) WrapKeys(*config.EncryptConfig, []byte) ([]byte, error) {
	return nil, errors.New("not used")
}

func (wrapper) UnwrapKey(_ *config.DecryptConfig, raw []byte) ([]byte, error) {
	p, err := keyprovider.ParsePacket(raw)
	if err != nil {
		return nil, err
	}
	return p.Open(testKey)
}

func (wrapper) GetAnnotationID() string                      { return keyprovider.LayerAnnotation }
func (wrapper) NoPossibleKeys(map[string][][]byte) bool      { return false }
func (wrapper) GetPrivateKeys(map[string][][]byte) [][]byte  { return [][]byte{{1}} }
func (wrapper) GetKeyIdsFromPacket(string) ([]uint64, error) { return nil, nil } //nolint:revive // the name is ocicrypt's
func (wrapper) GetRecipients(string) ([]string, error)       { return nil, nil }

func init() {
	ocicrypt.RegisterKeyWrapper("provider."+keyprovider.ProviderName, wrapper{})
}

// fakeKeys remembers what it was given, or refuses.
type fakeKeys struct {
	refuse error
	keys   map[string][]byte
}

func (k *fakeKeys) Put(_ context.Context, uri kbs.ResourceURI, key []byte) error {
	if k.refuse != nil {
		return k.refuse
	}
	if k.keys == nil {
		k.keys = map[string][]byte{}
	}
	k.keys[uri.String()] = key
	return nil
}

func testImage(edit func(*ocispec.Manifest)) *rt.Image {
	return rt.NewImage([]rt.Layer{
		rt.NewLayer(rt.Gzip, rt.Entry{Name: "a", Body: strings.Repeat("a", 3<<20)}),
		rt.NewLayer(rt.Plain, rt.Entry{Name: "b", Body: strings.Repeat("b", 2<<20)}),
		rt.NewLayer(rt.Zstd, rt.Entry{Name: "c", Body: "c"}),
	}, nil, edit)
}

func fetchFrom(t *testing.T, r *rt.Registry, img *rt.Image) *Registry {
	t.Helper()
	return open(t, r.Put("src", "1", img))
}

func open(t *testing.T, ref string) *Registry {
	t.Helper()
	reg, err := NewRegistry(ref, RegistryOptions{PlainHTTP: true})
	if err != nil {
		t.Fatal(err)
	}
	return reg
}

func manifestOf(t *testing.T, src Source) ocispec.Manifest {
	t.Helper()
	_, raw, err := Document(t.Context(), src)
	if err != nil {
		t.Fatal(err)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

// TestOcicryptReadsWhatWeSeal holds both kinds of destination against the library that other guests use.
func TestOcicryptReadsWhatWeSeal(t *testing.T) {
	r := rt.Start(t)
	img := testImage(nil)
	destinations := map[string]interface {
		Source
		Destination
	}{
		"registry": open(t, r.Ref("dst", "1")),
		"layout":   NewLayout(t.TempDir(), "1"),
	}
	for name, dst := range destinations {
		t.Run(name, func(t *testing.T) {
			var (
				mu   sync.Mutex
				last = map[string]Event{}
				keys fakeKeys
			)
			_, err := Encrypt(t.Context(), fetchFrom(t, r, img), dst, Options{KeyID: testURI, KEK: testKey, Keys: &keys, Progress: func(e Event) {
				mu.Lock()
				defer mu.Unlock()
				last[e.Layer.String()] = e
			}})
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(keys.keys[testURI.String()], testKey) {
				t.Error("the broker did not get the key")
			}
			m := manifestOf(t, dst)
			if m.Config.Digest != img.Manifest.Config.Digest {
				t.Error("the configuration was changed")
			}
			for i, desc := range m.Layers {
				plain := img.Layers[i]
				if desc.MediaType != plain.Desc.MediaType+"+encrypted" || desc.Size != plain.Desc.Size {
					t.Errorf("layer %d is %+v", i, desc)
				}
				if e := last[plain.Desc.Digest.String()]; e.Done != plain.Desc.Size || e.Total != e.Done {
					t.Errorf("last progress of layer %d is %+v", i, e)
				}
				wantPlain(t, dst, desc, plain.Blob)
			}
		})
	}
}

func wantPlain(t *testing.T, src Source, desc ocispec.Descriptor, want []byte) {
	t.Helper()
	rc, err := src.Fetch(t.Context(), desc)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	plain, _, err := ocicrypt.DecryptLayer(&config.DecryptConfig{}, newVerifier(rc, desc), desc, false)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(plain)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("decrypted %d bytes, %v; want %d", len(got), err, len(want))
	}
}

func TestChosenLayersAndPlatforms(t *testing.T) {
	r := rt.Start(t)
	index := rt.NewIndex(map[string]*rt.Image{"linux/amd64": testImage(nil), "linux/arm64": testImage(nil), "unknown/unknown": testImage(nil)})
	cases := map[string]struct {
		img       *rt.Image
		opts      Options
		wantErr   error
		encrypted []bool
		images    int
		index     bool
	}{
		"first and last":   {img: testImage(nil), opts: Options{Layers: []int{0, -1}}, encrypted: []bool{true, false, true}, images: 1},
		"no such layer":    {img: testImage(nil), opts: Options{Layers: []int{3}}, wantErr: errdefs.ErrInvalidArgument},
		"all platforms":    {img: index, images: 2, index: true},
		"two platforms":    {img: index, opts: Options{Platforms: []string{"linux/arm64", "linux/amd64"}}, images: 2, index: true},
		"one platform":     {img: index, opts: Options{Platforms: []string{"linux/arm64"}}, images: 1, encrypted: []bool{true, true, true}},
		"no such platform": {img: index, opts: Options{Platforms: []string{"linux/s390x"}}, wantErr: errdefs.ErrNotFound},
		"foreign layers": {img: testImage(func(m *ocispec.Manifest) {
			m.Layers[0].MediaType, m.Layers[1].MediaType = nonDistributableLayer+"+gzip", dockerForeignLayer
			m.Layers[0].URLs = []string{"https://elsewhere.example/layer"}
		}), encrypted: []bool{true, true, true}, images: 1},
		"docker's types": {img: testImage(func(m *ocispec.Manifest) {
			m.MediaType, m.Config.MediaType = dockerManifest, "application/vnd.docker.container.image.v1+json"
			m.Layers[0].MediaType, m.Layers[1].MediaType = dockerLayer+".gzip", dockerLayer
		}), encrypted: []bool{true, true, true}, images: 1},
		"no image":      {img: testImage(func(m *ocispec.Manifest) { m.Config.MediaType = "application/vnd.oci.empty.v1+json" }), wantErr: errdefs.ErrInvalidArgument},
		"unknown layer": {img: testImage(func(m *ocispec.Manifest) { m.Layers[0].MediaType = "application/x" }), wantErr: errdefs.ErrNotImplemented},
		"no layers":     {img: testImage(func(m *ocispec.Manifest) { m.Layers = nil }), wantErr: errdefs.ErrInvalidArgument},
		"short key":     {img: testImage(nil), opts: Options{KEK: []byte("short")}, wantErr: errdefs.ErrInvalidArgument},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			tc.opts.KeyID = testURI
			if tc.opts.KEK == nil {
				tc.opts.KEK = testKey
			}
			dst := NewLayout(t.TempDir(), "")
			result, err := Encrypt(t.Context(), fetchFrom(t, r, tc.img), dst, tc.opts)
			if tc.wantErr != nil {
				if !errors.Is(err, tc.wantErr) {
					t.Fatalf("got %v, want %v", err, tc.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if len(result.Images) != tc.images || isIndex(result.Desc.MediaType) != tc.index {
				t.Errorf("result is %+v", result)
			}
			d, err := Inspect(t.Context(), dst)
			if err != nil || len(d.Images) != tc.images {
				t.Fatalf("inspect: %+v, %v", d, err)
			}
			checkLayers(t, d, tc.encrypted)
		})
	}
}

func checkLayers(t *testing.T, d *Description, encrypted []bool) {
	t.Helper()
	for i, want := range encrypted {
		l := d.Images[0].Layers[i]
		if l.Encrypted != want || l.Fault != "" || want != slices.Equal(l.KeyIDs, []string{testURI.String()}) || !strings.HasPrefix(l.MediaType, ocispec.MediaTypeImageLayer) {
			t.Errorf("layer %d is %+v", i, l)
		}
	}
}

func TestNothingIsVisibleAfterAFault(t *testing.T) {
	cases := map[string]struct {
		fault   *rt.Fault
		keys    *fakeKeys
		wantErr error
	}{
		"broker refuses": {keys: &fakeKeys{refuse: errdefs.ErrPermissionDenied}, wantErr: errdefs.ErrPermissionDenied},
		"layer is wrong": {fault: &rt.Fault{Kind: rt.LayerBlob, Action: rt.FlipByte}, wantErr: errdefs.ErrDataLoss},
		"layer is gone":  {fault: &rt.Fault{Kind: rt.LayerBlob, Action: rt.Status, Status: 404}, wantErr: errdefs.ErrNotFound},
		"manifest lies":  {fault: &rt.Fault{Kind: rt.Manifest, Method: "GET", Action: rt.FlipByte}, wantErr: errdefs.ErrDataLoss},
		"config is gone": {fault: &rt.Fault{Kind: rt.Config, Action: rt.Status, Status: 404}, wantErr: errdefs.ErrNotFound},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			from, to := rt.Start(t), rt.Start(t)
			src := fetchFrom(t, from, testImage(nil))
			if tc.fault != nil {
				from.Inject(*tc.fault)
			}
			if tc.keys == nil {
				tc.keys = &fakeKeys{}
			}
			_, err := Encrypt(t.Context(), src, open(t, to.Ref("dst", "1")), Options{KeyID: testURI, KEK: testKey, Keys: tc.keys})
			if !errors.Is(err, tc.wantErr) {
				t.Fatalf("got %v, want %v", err, tc.wantErr)
			}
			if _, _, ok := to.GetManifest("dst", "1"); ok {
				t.Error("the image is visible")
			}
			if len(tc.keys.keys) > 0 {
				t.Error("the key was handed out for an image that does not exist")
			}
		})
	}
}

func TestPushFaults(t *testing.T) {
	for name, code := range map[string]int{"403": 403, "500": 500} {
		t.Run(name, func(t *testing.T) {
			from, to := rt.Start(t), rt.Start(t)
			to.Inject(rt.Fault{Kind: rt.Manifest, Method: "PUT", Action: rt.Status, Status: code})
			_, err := Encrypt(t.Context(), fetchFrom(t, from, testImage(nil)), open(t, to.Ref("dst", "1")), Options{KeyID: testURI, KEK: testKey})
			if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("answered %d", code)) {
				t.Fatalf("got %v", err)
			}
		})
	}
}

func TestLayoutKeepsOtherImages(t *testing.T) {
	r := rt.Start(t)
	dir := t.TempDir()
	for _, tag := range []string{"one", "two", "one"} {
		if _, err := Encrypt(t.Context(), fetchFrom(t, r, testImage(nil)), NewLayout(dir, tag), Options{KeyID: testURI, KEK: testKey}); err != nil {
			t.Fatal(err)
		}
	}
	index, err := NewLayout(dir, "").index()
	if err != nil || len(index.Manifests) != 2 {
		t.Fatalf("index is %+v, %v", index, err)
	}
	if _, err := NewLayout(dir, "").Resolve(t.Context()); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("no tag and two images: %v", err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "blobs/sha256/.tmp-*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
	if _, err := NewLayout(filepath.Join(dir, "missing"), "x").Resolve(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing layout: %v", err)
	}
}

func TestReferences(t *testing.T) {
	for _, ref := range []string{"busybox:1", "docker.io/library/busybox", "", "a.b/C:1:2:3@@"} {
		if _, err := NewRegistry(ref, RegistryOptions{}); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%q: %v", ref, err)
		}
	}
}
