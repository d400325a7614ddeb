package image_test

import (
	"testing"

	"github.com/coffer-project/coffer/guestpull/decrypt"
	"github.com/coffer-project/coffer/guestpull/image"
	"github.com/coffer-project/coffer/guestpull/registry"
	"github.com/coffer-project/coffer/guestpull/store"
	"github.com/coffer-project/coffer/guestpull/unpack"
	"github.com/coffer-project/coffer/guestpull/verify"
	rt "github.com/coffer-project/coffer/integration/registrytest"
	"github.com/coffer-project/coffer/integration/require"
)

// TestLyingMirror: a mirror that sends wrong bytes costs the layer's transfer, not the pull, and nothing of it stays.
func TestLyingMirror(t *testing.T) {
	require.Root(t)
	origin, mirror := rt.Start(t), rt.Start(t)
	img := rt.NewImage(plainLayers(t), nil, nil)
	ref := origin.Put("app", "1", img)
	mirror.Put("app", "1", img)
	mirror.Inject(rt.Fault{Kind: rt.LayerBlob, Action: rt.FlipByte})
	client, err := registry.New(registry.Config{Registries: []registry.Registry{{
		Prefix: origin.Addr(), PlainHTTP: true, Mirrors: []registry.Mirror{{Location: mirror.Addr(), PlainHTTP: true}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	s, err := store.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	p := image.New(client, verify.New(verify.DefaultLimits()), decrypt.New(nil), unpack.New(unpack.DefaultLimits()), s, image.WithPlatform("linux/amd64"))
	got, err := p.Pull(t.Context(), image.Request{ContainerID: "c", Reference: ref})
	if err != nil {
		t.Fatal(err)
	}
	if body := readFile(t, got.Layers, "b"); body != "b" {
		t.Errorf("b has %q", body)
	}
	if n := origin.Count(rt.LayerBlob, "GET"); n != 2 {
		t.Errorf("registry was asked for %d layers, want 2", n)
	}
	if err := p.Release(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	wantEmpty(t, dir)
}
