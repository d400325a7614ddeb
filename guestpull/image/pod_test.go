package image_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

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

// countedKeys counts what a broker is asked for.
type countedKeys struct {
	fakeKeys
	mu    sync.Mutex
	asked map[string]int
}

func (k *countedKeys) Resource(ctx context.Context, uri string) ([]byte, error) {
	k.mu.Lock()
	k.asked[uri]++
	k.mu.Unlock()
	return k.fakeKeys.Resource(ctx, uri)
}

// TestPodPullsSideBySide: the layers of all containers of a pod are under way at the same time, each blob once, and each key
// is fetched once. The registry lets no layer through before the layers of all images were asked for.
func TestPodPullsSideBySide(t *testing.T) {
	require.Root(t)
	const containers = 3
	base := encrypt(t, rt.NewLayer(rt.Gzip, rt.Files(map[string]string{"base": strings.Repeat("b", 1<<20)})...), keyprovider.WrapGCM)
	r := rt.New()
	want := map[string]bool{base.Desc.Digest.String(): true}
	for i := range containers {
		top := encrypt(t, rt.NewLayer(rt.Gzip, rt.Files(map[string]string{"top": fmt.Sprint(i)})...), keyprovider.WrapGCM)
		want[top.Desc.Digest.String()] = true
		r.Put(fmt.Sprintf("app%d", i), "1", rt.NewImage([]rt.Layer{base, top}, nil, nil))
	}
	var mu sync.Mutex
	asked, all := map[string]int{}, make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		name := req.URL.Path[strings.LastIndexByte(req.URL.Path, '/')+1:]
		if want[name] {
			mu.Lock()
			if asked[name]++; len(asked) == len(want) && asked[name] == 1 {
				close(all)
			}
			mu.Unlock()
			select {
			case <-all:
			case <-req.Context().Done():
				return
			}
		}
		r.ServeHTTP(w, req)
	}))
	t.Cleanup(s.Close)
	addr := strings.TrimPrefix(s.URL, "http://")
	client, err := registry.New(registry.Config{Registries: []registry.Registry{{Prefix: addr, PlainHTTP: true}}})
	if err != nil {
		t.Fatal(err)
	}
	dir, err := store.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	keys := &countedKeys{fakeKeys: fakeKeys{keyURI: kek()}, asked: map[string]int{}}
	p := image.New(client, verify.New(verify.DefaultLimits()), decrypt.New(keys), unpack.New(unpack.DefaultLimits()), dir,
		image.WithPlatform("linux/amd64"), image.WithParallel(2))
	var refs []string
	for i := range containers {
		refs = append(refs, fmt.Sprintf("%s/app%d:1", addr, i))
	}
	pullBeside(t, p, refs)
	for name, n := range asked {
		if n != 1 {
			t.Errorf("layer %s was asked for %d times", name, n)
		}
	}
	if len(keys.asked) != 1 || keys.asked[keyURI] != 1 {
		t.Errorf("keys were asked for %v", keys.asked)
	}
}
