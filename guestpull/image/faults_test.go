package image_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-project/coffer/guestpull/decrypt"
	"github.com/coffer-project/coffer/guestpull/image"
	"github.com/coffer-project/coffer/guestpull/registry"
	"github.com/coffer-project/coffer/guestpull/store"
	"github.com/coffer-project/coffer/guestpull/unpack"
	"github.com/coffer-project/coffer/guestpull/verify"
	rt "github.com/coffer-project/coffer/integration/registrytest"
	"github.com/coffer-project/coffer/integration/require"
	"github.com/coffer-project/coffer/proto/keyprovider"
)

// fault is an image that must not be pulled, and why.
type fault struct {
	layers       func(t *testing.T) []rt.Layer
	editConfig   func(*ocispec.Image)
	editManifest func(*ocispec.Manifest)
	inject       *rt.Fault
	keys         decrypt.KeySource
	wantErr      error
	text         string
}

func plainLayers(*testing.T) []rt.Layer {
	return []rt.Layer{
		rt.NewLayer(rt.Gzip, rt.Files(map[string]string{"a": strings.Repeat("a", 2<<20)})...),
		rt.NewLayer(rt.Zstd, rt.Files(map[string]string{"b": "b"})...),
	}
}

func sealedLayers(t *testing.T) []rt.Layer {
	t.Helper()
	var out []rt.Layer
	for _, l := range plainLayers(t) {
		out = append(out, encrypt(t, l, keyprovider.WrapGCM))
	}
	return out
}

// altered changes a layer's bytes and its descriptor with them, so that only what lies deeper can notice.
func altered(change func([]byte) []byte) func(*testing.T) []rt.Layer {
	return func(t *testing.T) []rt.Layer {
		t.Helper()
		layers := sealedLayers(t)
		last := &layers[len(layers)-1]
		last.Blob = change(last.Blob)
		last.Desc.Digest, last.Desc.Size = digest.FromBytes(last.Blob), int64(len(last.Blob))
		return layers
	}
}

// mismatch is an image whose last diff id is another's. How that is noticed depends on how the layer is packed.
func mismatch(packing string, sealed bool) fault {
	return fault{
		keys: fakeKeys{keyURI: kek()}, wantErr: errdefs.ErrFailedPrecondition, text: "unpacks to diff id",
		layers: func(t *testing.T) []rt.Layer {
			l := rt.NewLayer(packing, rt.Files(map[string]string{"a": strings.Repeat("a", 100<<10)})...)
			if sealed {
				l = encrypt(t, l, keyprovider.WrapGCM)
			}
			return []rt.Layer{l}
		},
		editConfig: func(c *ocispec.Image) { c.RootFS.DiffIDs[0] = digest.FromString("other") },
	}
}

func faults() map[string]fault {
	good := fakeKeys{keyURI: kek()}
	return map[string]fault{
		"diff id mismatch, gzip":           mismatch(rt.Gzip, false),
		"diff id mismatch, encrypted gzip": mismatch(rt.Gzip, true),
		"diff id mismatch, tar":            mismatch(rt.Plain, false),
		"diff id mismatch, encrypted tar":  mismatch(rt.Plain, true),
		"wrong key":                        {layers: sealedLayers, keys: fakeKeys{keyURI: make([]byte, 32)}, wantErr: decrypt.ErrWrongKey, text: keyURI},
		"no key":                           {layers: sealedLayers, keys: fakeKeys{}, wantErr: errdefs.ErrNotFound, text: keyURI},
		"no broker":                        {layers: sealedLayers, wantErr: decrypt.ErrNoKey, text: "cdh.toml"},
		"flipped byte in ciphertext": {keys: good, wantErr: decrypt.ErrTampered, text: "HMAC",
			layers: altered(func(b []byte) []byte { b[len(b)/2] ^= 1; return b })},
		"ciphertext is longer": {keys: good, wantErr: decrypt.ErrTampered,
			layers: altered(func(b []byte) []byte { return append(b, 1, 2, 3) })},
		"flipped byte on the way": {layers: sealedLayers, keys: good, wantErr: errdefs.ErrFailedPrecondition, text: "do not match digest",
			inject: &rt.Fault{Kind: rt.LayerBlob, Action: rt.FlipByte}},
		"flipped byte in a tar header on the way": {wantErr: errdefs.ErrFailedPrecondition, text: "do not match digest",
			layers: func(*testing.T) []rt.Layer { return []rt.Layer{rt.NewLayer(rt.Plain, rt.Entry{Name: "f"})} },
			inject: &rt.Fault{Kind: rt.LayerBlob, Action: rt.WrongBlob}},
		"garbage after the packed stream": {wantErr: errdefs.ErrInvalidArgument, layers: func(*testing.T) []rt.Layer {
			l := rt.NewLayer(rt.Gzip, rt.Entry{Name: "f"})
			l.Blob = append(l.Blob, "garbage"...)
			l.Desc = rt.Descriptor(l.Desc.MediaType, l.Blob)
			return []rt.Layer{l}
		}},
		"packet is malformed": {layers: sealedLayers, keys: good, wantErr: decrypt.ErrMalformed,
			editManifest: func(m *ocispec.Manifest) { m.Layers[0].Annotations[keyprovider.LayerAnnotation] = "e30=" }},
		"encrypted layer called plain": {layers: sealedLayers, keys: good, wantErr: errdefs.ErrInvalidArgument, text: "gzip",
			editManifest: func(m *ocispec.Manifest) { m.Layers[0].MediaType = ocispec.MediaTypeImageLayerGzip }},
		"unknown media type": {layers: plainLayers, wantErr: errdefs.ErrNotImplemented, text: "application/x-new",
			editManifest: func(m *ocispec.Manifest) { m.Layers[0].MediaType = "application/x-new" }},
		"layer is gone": {layers: plainLayers, wantErr: errdefs.ErrNotFound, text: "404",
			inject: &rt.Fault{Kind: rt.LayerBlob, Action: rt.Status, Status: 404}},
		"configuration is gone": {layers: plainLayers, wantErr: errdefs.ErrNotFound,
			inject: &rt.Fault{Kind: rt.Config, Action: rt.Status, Status: 404}},
		"manifest is gone": {layers: plainLayers, wantErr: errdefs.ErrNotFound,
			inject: &rt.Fault{Kind: rt.Manifest, Action: rt.Status, Status: 404}},
		"registry wants login": {layers: plainLayers, wantErr: errdefs.ErrUnauthenticated,
			inject: &rt.Fault{Kind: rt.Manifest, Action: rt.Status, Status: 401}},
		"registry stalls": {layers: plainLayers, wantErr: errdefs.ErrUnavailable, text: "sent nothing",
			inject: &rt.Fault{Kind: rt.LayerBlob, Action: rt.Stall}},
		"endless configuration is cut": {layers: plainLayers, inject: &rt.Fault{Kind: rt.Config, Action: rt.Endless}},
		"registry lies about the tag": {layers: plainLayers, wantErr: errdefs.ErrFailedPrecondition,
			inject: &rt.Fault{Kind: rt.Manifest, Method: "GET", Action: rt.FlipByte}},
		"no layers": {layers: func(*testing.T) []rt.Layer { return nil }, wantErr: errdefs.ErrInvalidArgument},
		"hostile tar": {wantErr: errdefs.ErrInvalidArgument, layers: func(*testing.T) []rt.Layer {
			return []rt.Layer{rt.NewLayerFromTar(rt.Gzip, append(rt.Tar(rt.Entry{Name: "ok"})[:1024], strings.Repeat("\xff", 2048)...))}
		}},
	}
}

func TestFaults(t *testing.T) {
	require.Root(t)
	for name, tc := range faults() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := rt.Start(t)
			ref := r.Put("app", "1", rt.NewImage(tc.layers(t), tc.editConfig, tc.editManifest))
			if tc.inject != nil {
				r.Inject(*tc.inject)
			}
			p, dir := quickPuller(t, r, tc.keys)
			img, err := p.Pull(t.Context(), image.Request{ContainerID: "c", Reference: ref})
			if tc.wantErr == nil {
				if err != nil || len(img.Layers) != 2 {
					t.Fatalf("got %v", err)
				}
				return
			}
			if !errors.Is(err, tc.wantErr) || !strings.Contains(err.Error(), tc.text) {
				t.Fatalf("got %v; want %v with %q", err, tc.wantErr, tc.text)
			}
			if !strings.HasPrefix(err.Error(), "pull image "+ref+": ") {
				t.Errorf("error does not begin with the image: %v", err)
			}
			wantEmpty(t, dir)
		})
	}
}

// TestOneLayerFailsOfMany: the error is that of the layer alone, not of those that were given up because of it.
func TestOneLayerFailsOfMany(t *testing.T) {
	require.Root(t)
	r := rt.Start(t)
	var layers []rt.Layer
	for i := range 20 {
		layers = append(layers, rt.NewLayer(rt.Gzip, rt.Entry{Name: fmt.Sprint(i)}))
	}
	ref := r.Put("app", "1", rt.NewImage(layers, nil, nil))
	r.Inject(rt.Fault{Kind: rt.LayerBlob, Digest: layers[0].Desc.Digest.String(), Action: rt.Status, Status: 404})
	p, dir := quickPuller(t, r, nil)
	_, err := p.Pull(t.Context(), image.Request{ContainerID: "c", Reference: ref})
	if !errors.Is(err, errdefs.ErrNotFound) || strings.Contains(err.Error(), "canceled") {
		t.Errorf("got %v; want the layer's own error alone", err)
	}
	wantEmpty(t, dir)
}

// quickPuller gives up on silent registries soon.
func quickPuller(t *testing.T, r *rt.Registry, keys decrypt.KeySource) (*image.Puller, string) {
	t.Helper()
	client, err := registry.New(registry.Config{
		Registries: []registry.Registry{{Prefix: r.Addr(), PlainHTTP: true}}, Attempts: 1, IdleTimeout: time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	s, err := store.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return image.New(client, verify.New(verify.DefaultLimits()), decrypt.New(keys), unpack.New(unpack.DefaultLimits(), unpack.WithSpace(s.Free)), s,
		image.WithPlatform("linux/amd64"), image.WithParallel(2)), dir
}

// TestPlaintextNeedsItsKey: an image that lists the diff ids of another's encrypted layers must not be given them.
func TestPlaintextNeedsItsKey(t *testing.T) {
	require.Root(t)
	r := rt.Start(t)
	secret := sealedLayers(t)
	ref := r.Put("secret", "1", rt.NewImage(secret, nil, nil))
	p, _ := quickPuller(t, r, fakeKeys{keyURI: kek()})
	if _, err := p.Pull(t.Context(), image.Request{ContainerID: "honest", Reference: ref}); err != nil {
		t.Fatal(err)
	}
	junk := rt.NewLayer(rt.Gzip, rt.Entry{Name: "junk"})
	cases := map[string]func(*ocispec.Manifest){
		"other blobs": func(m *ocispec.Manifest) { m.Layers[0], m.Layers[1] = junk.Desc, junk.Desc },
		"same blobs, not sealed": func(m *ocispec.Manifest) {
			for i := range m.Layers {
				m.Layers[i].MediaType, m.Layers[i].Annotations = strings.TrimSuffix(m.Layers[i].MediaType, "+encrypted"), nil
			}
		},
	}
	for name, edit := range cases {
		t.Run(name, func(t *testing.T) {
			thief := rt.NewImage(secret, nil, edit)
			thief.Blobs[junk.Desc.Digest] = junk.Blob
			ref := r.Put("thief", "1", thief)
			if img, err := p.Pull(t.Context(), image.Request{ContainerID: "thief", Reference: ref}); err == nil {
				t.Fatalf("was given %q", img.Layers)
			}
		})
	}
}

func TestPullsShareLayers(t *testing.T) {
	require.Root(t)
	r := rt.Start(t)
	base := rt.NewLayer(rt.Gzip, rt.Files(map[string]string{"base": strings.Repeat("b", 1<<20)})...)
	var refs []string
	for i := range 4 {
		top := rt.NewLayer(rt.Gzip, rt.Files(map[string]string{"top": fmt.Sprint(i)})...)
		refs = append(refs, r.Put(fmt.Sprintf("app%d", i), "1", rt.NewImage([]rt.Layer{base, top}, nil, nil)))
	}
	p, dir := quickPuller(t, r, nil)
	pullBeside(t, p, refs)
	gets := map[string]int{}
	for _, q := range r.Requests() {
		if q.Kind == rt.LayerBlob {
			gets[q.Object]++
		}
	}
	if n := gets[base.Desc.Digest.String()]; n != 1 {
		t.Errorf("base layer was fetched %d times", n)
	}
	for i := range refs {
		if err := p.Release(t.Context(), fmt.Sprint(i)); err != nil {
			t.Error(err)
		}
	}
	wantEmpty(t, dir)
}

// TestFailureKeepsOtherPulls: a container that pulls a second image and fails keeps the first.
func TestFailureKeepsOtherPulls(t *testing.T) {
	require.Root(t)
	r := rt.Start(t)
	good := r.Put("good", "1", rt.NewImage(plainLayers(t), nil, nil))
	bad := r.Put("bad", "1", rt.NewImage(plainLayers(t), func(c *ocispec.Image) { c.RootFS.DiffIDs[1] = digest.FromString("x") }, nil))
	p, _ := quickPuller(t, r, nil)
	img, err := p.Pull(t.Context(), image.Request{ContainerID: "c", Reference: good})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Pull(t.Context(), image.Request{ContainerID: "c", Reference: bad}); err == nil {
		t.Fatal("the bad image was pulled")
	}
	for _, dir := range img.Layers {
		if _, err := os.Stat(dir); err != nil {
			t.Error(err)
		}
	}
}

func TestCancelLeavesNothing(t *testing.T) {
	require.Root(t)
	r := rt.Start(t)
	ref := r.Put("app", "1", rt.NewImage(plainLayers(t), nil, nil))
	r.Inject(rt.Fault{Kind: rt.LayerBlob, Action: rt.Stall})
	p, dir := newPuller(t, r, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := p.Pull(ctx, image.Request{ContainerID: "c", Reference: ref}); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
	wantEmpty(t, dir)
}

func TestImageLargerThanMemory(t *testing.T) {
	require.Root(t)
	r := rt.Start(t)
	noise := make([]byte, 24<<20)
	for i := range noise {
		noise[i] = byte(i>>3) ^ byte(i*31>>7)
	}
	cases := map[string]struct {
		layer    rt.Layer
		wantGets int // a size that is known beforehand must cost no transfer
	}{
		"packed size tells": {rt.NewLayer(rt.Plain, rt.Entry{Name: "f", Body: string(noise)}), 0},
		"bomb":              {rt.NewLayer(rt.Gzip, rt.Entry{Name: "f", Body: strings.Repeat("\x00", 40<<20)}), 1},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			ref := r.Put("big", "1", rt.NewImage([]rt.Layer{tc.layer}, nil, nil))
			dir := require.Tmpfs(t, 0, "size=16m")
			s, err := store.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			client, err := registry.New(registry.Config{Registries: []registry.Registry{{Prefix: r.Addr(), PlainHTTP: true}}})
			if err != nil {
				t.Fatal(err)
			}
			p := image.New(client, verify.New(verify.DefaultLimits()), decrypt.New(nil), unpack.New(unpack.DefaultLimits(), unpack.WithSpace(s.Free)), s,
				image.WithPlatform("linux/amd64"))
			before := r.Count(rt.LayerBlob, "")
			_, err = p.Pull(t.Context(), image.Request{ContainerID: "c", Reference: ref})
			if !errors.Is(err, errdefs.ErrResourceExhausted) || !strings.Contains(err.Error(), "memory_mib") {
				t.Fatalf("got %v", err)
			}
			if n := r.Count(rt.LayerBlob, "") - before; n != tc.wantGets {
				t.Errorf("layer was asked for %d times", n)
			}
			wantEmpty(t, dir)
		})
	}
}

// pullBeside pulls images side by side, each for a container of its own, and looks for the image's number in the file top.
func pullBeside(t *testing.T, p *image.Puller, refs []string) {
	t.Helper()
	var pulls sync.WaitGroup
	for i, ref := range refs {
		pulls.Go(func() {
			img, err := p.Pull(t.Context(), image.Request{ContainerID: fmt.Sprint(i), Reference: ref})
			if err != nil {
				t.Error(err)
				return
			}
			if got := readFile(t, img.Layers, "top"); got != fmt.Sprint(i) {
				t.Errorf("image %d has top %q", i, got)
			}
		})
	}
	pulls.Wait()
}
