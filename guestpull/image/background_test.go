package image_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/guestpull/decrypt"
	"github.com/coffer-project/coffer/guestpull/image"
	"github.com/coffer-project/coffer/guestpull/registry"
	"github.com/coffer-project/coffer/guestpull/store"
	"github.com/coffer-project/coffer/guestpull/unpack"
	"github.com/coffer-project/coffer/guestpull/verify"
	rt "github.com/coffer-project/coffer/integration/registrytest"
	"github.com/coffer-project/coffer/integration/require"
)

// gate is a registry whose layers wait to be let through.
type gate struct {
	*rt.Registry
	addr  string
	asked chan struct{} // gets one for each layer that is asked for
	opens chan struct{} // closed to let layers through
}

func newGate(t *testing.T, layers []rt.Layer) *gate {
	t.Helper()
	g := &gate{Registry: rt.New(), asked: make(chan struct{}, 64), opens: make(chan struct{})}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, l := range layers {
			if !strings.HasSuffix(r.URL.Path, "/blobs/"+l.Desc.Digest.String()) {
				continue
			}
			g.asked <- struct{}{}
			select {
			case <-g.opens:
			case <-r.Context().Done():
				return
			}
		}
		g.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	g.addr = strings.TrimPrefix(s.URL, "http://")
	g.Put("app", "1", rt.NewImage(layers, nil, nil))
	return g
}

// background is a puller as a guest has it, with its store.
func background(life context.Context, t *testing.T, g *gate, limit time.Duration, opts ...store.Option) (*image.Background, string) {
	t.Helper()
	require.Root(t)
	client, err := registry.New(registry.Config{Registries: []registry.Registry{{Prefix: g.addr, PlainHTTP: true}}})
	if err != nil {
		t.Fatal(err)
	}
	dir := require.Tmpfs(t, 0, "size=128m")
	s, err := store.Open(dir, opts...)
	if err != nil {
		t.Fatal(err)
	}
	p := image.New(client, verify.New(verify.DefaultLimits()), decrypt.New(nil), unpack.New(unpack.DefaultLimits(), unpack.WithSpace(s.Room)), s, image.WithPlatform("linux/amd64"))
	return image.NewBackground(life, p, limit), dir
}

// giveUp pulls for a container whose creator leaves once the registry was asked for a layer.
func giveUp(t *testing.T, b *image.Background, g *gate, container string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-g.asked
		cancel()
	}()
	_, err := b.Pull(ctx, image.Request{ContainerID: container, Reference: g.addr + "/app:1"})
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "goes on") {
		t.Fatalf("got %v", err)
	}
}

func layer() []rt.Layer {
	return []rt.Layer{rt.NewLayer(rt.Gzip, rt.Files(map[string]string{"a": strings.Repeat("a", 1<<20)})...)}
}

// TestPullOutlivesItsCaller: kubelet gives up, removes the container, and makes another one, which gets what the first one
// asked for: one transfer for all of them.
func TestPullOutlivesItsCaller(t *testing.T) {
	g := newGate(t, layer())
	b, dir := background(t.Context(), t, g, time.Minute, store.WithRetention(time.Hour))
	giveUp(t, b, g, "first")
	if err := b.Release(t.Context(), "first"); err != nil {
		t.Fatal(err)
	}
	got := make(chan error, 1)
	go func() {
		img, err := b.Pull(t.Context(), image.Request{ContainerID: "second", Reference: g.addr + "/app:1"})
		if err == nil && len(img.Layers) != 1 {
			err = fmt.Errorf("image has %d layers", len(img.Layers))
		}
		got <- err
	}()
	for g.Count(rt.Manifest, http.MethodHead) < 2 { // the second pull is on its way
		time.Sleep(time.Millisecond)
	}
	close(g.opens)
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	if err := b.Release(t.Context(), "second"); err != nil {
		t.Fatal(err)
	}
	// A crash loop: the third one finds what the second one had.
	if _, err := b.Pull(t.Context(), image.Request{ContainerID: "third", Reference: g.addr + "/app:1"}); err != nil {
		t.Fatal(err)
	}
	if n := g.Count(rt.LayerBlob, ""); n != 1 {
		t.Errorf("layer was transferred %d times", n)
	}
	if entries, err := os.ReadDir(filepath.Join(dir, "staging")); err != nil || len(entries) != 0 {
		t.Errorf("staging has %d entries, %v", len(entries), err)
	}
}

// TestUnusedLayersMakeWay: a file that is larger than what is free, and whose packed size does not tell, has the space of
// layers that nobody uses.
func TestUnusedLayersMakeWay(t *testing.T) {
	big := func(name string) []rt.Layer {
		return []rt.Layer{rt.NewLayer(rt.Gzip, rt.Files(map[string]string{name: strings.Repeat("x", 60<<20)})...)}
	}
	first := newGate(t, big("one"))
	close(first.opens)
	first.Put("second", "1", rt.NewImage(big("two"), nil, nil))
	b, _ := background(t.Context(), t, first, time.Minute, store.WithRetention(time.Hour))
	for i, repo := range []string{"app", "second", "app"} {
		id := fmt.Sprint(i)
		if _, err := b.Pull(t.Context(), image.Request{ContainerID: id, Reference: first.addr + "/" + repo + ":1"}); err != nil {
			t.Fatal(err)
		}
		if err := b.Release(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSameContainerAsksAgain: the creation of the same container joins its own pull.
func TestSameContainerAsksAgain(t *testing.T) {
	g := newGate(t, layer())
	b, dir := background(t.Context(), t, g, time.Minute)
	giveUp(t, b, g, "c")
	close(g.opens)
	if _, err := b.Pull(t.Context(), image.Request{ContainerID: "c", Reference: g.addr + "/app:1"}); err != nil {
		t.Fatal(err)
	}
	if n := g.Count(rt.Manifest, http.MethodHead); n != 1 {
		t.Errorf("image was resolved %d times", n)
	}
	if err := b.Release(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	wantEmptySoon(t, dir)
}

// TestOtherImageEndsThePull: a container of the same name with another image cannot share what it holds.
func TestOtherImageEndsThePull(t *testing.T) {
	g := newGate(t, layer())
	other := g.Put("other", "1", rt.NewImage([]rt.Layer{rt.NewLayer(rt.Gzip, rt.Entry{Name: "b", Body: "b"})}, nil, nil))
	other = g.addr + other[strings.IndexByte(other, '/'):]
	b, dir := background(t.Context(), t, g, time.Minute)
	giveUp(t, b, g, "c")
	if _, err := b.Pull(t.Context(), image.Request{ContainerID: "c", Reference: other}); err != nil {
		t.Fatal(err)
	}
	if err := b.Release(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	wantEmptySoon(t, dir)
}

// TestAbandonedPullEnds: with the pod, and by its own limit, and leaves nothing.
func TestAbandonedPullEnds(t *testing.T) {
	for name, limit := range map[string]time.Duration{"with the pod": time.Minute, "by its limit": 300 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			g := newGate(t, layer())
			life, end := context.WithCancel(t.Context())
			defer end()
			b, dir := background(life, t, g, limit)
			if limit == time.Minute {
				giveUp(t, b, g, "c")
				end()
			} else if _, err := b.Pull(t.Context(), image.Request{ContainerID: "c", Reference: g.addr + "/app:1"}); !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("got %v", err)
			}
			if err := b.Release(t.Context(), "c"); err != nil {
				t.Fatal(err)
			}
			wantEmptySoon(t, dir)
		})
	}
}

// TestTooManyAbandoned: the pulls that nobody waits for are bounded; the oldest go first.
func TestTooManyAbandoned(t *testing.T) {
	g := newGate(t, layer())
	gone := 0
	b, dir := background(t.Context(), t, g, time.Minute)
	giveUp(t, b, g, "c0")
	for i := 1; i < 12; i++ {
		// These wait in the store for the first one's layer; they are given up as soon as they have begun.
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		_, err := b.Pull(ctx, image.Request{ContainerID: fmt.Sprintf("c%d", i), Reference: g.addr + "/app:1"})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("c%d: %v", i, err)
		}
		cancel()
	}
	// The first was cancelled with the layer in its hands, so another had to ask for it.
	select {
	case <-g.asked:
		gone++
	case <-time.After(20 * time.Second):
	}
	if gone == 0 {
		t.Error("nobody took the layer over: the first pull was not given up")
	}
	close(g.opens)
	for i := range 12 {
		if err := b.Release(t.Context(), fmt.Sprintf("c%d", i)); err != nil && !errdefs.IsNotFound(err) {
			t.Error(err)
		}
	}
	wantEmptySoon(t, dir)
}

// wantEmptySoon waits until nothing of any pull is left.
func wantEmptySoon(t *testing.T, dir string) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		n := 0
		for _, sub := range []string{"staging", "layers"} {
			entries, err := os.ReadDir(filepath.Join(dir, sub))
			if err != nil {
				t.Fatal(err)
			}
			n += len(entries)
		}
		if n == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d folders of pulls are left", n)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
