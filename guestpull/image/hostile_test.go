package image_test

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"runtime"
	"runtime/metrics"
	"strings"
	"testing"
	"time"

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

// maxHeap is what no image and no registry may make a pull take, in bytes beyond what the process had before.
const maxHeap = 96 << 20

// objects are what a registry is asked for, by a part of the address.
var objects = []string{"tag", "manifest", "config", "layer"}

// evil stands before an honest registry and answers the requests for one kind of object.
type evil func(w http.ResponseWriter, r *http.Request, honest http.Handler)

// front starts a registry with an image behind an evil server, and returns the server's address. Which object a request is
// for is told by its digest.
func front(t *testing.T, img *rt.Image, object string, handle evil) string {
	t.Helper()
	honest := rt.New()
	honest.Put("app", "1", img)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
		kind := "layer"
		switch name {
		case "1":
			kind = "tag"
		case img.Desc.Digest.String():
			kind = "manifest"
		case img.Manifest.Config.Digest.String():
			kind = "config"
		}
		if kind == object {
			handle(w, r, honest)
			return
		}
		honest.ServeHTTP(w, r)
	}))
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	return server.Listener.Addr().String()
}

// hostilePull pulls, and holds the pull to what is promised of every pull: it ends in time and in bounded memory, an error
// has a class, and nothing is left behind.
func hostilePull(t *testing.T, addr string, limits unpack.Limits) (*image.Image, error) {
	t.Helper()
	client, err := registry.New(registry.Config{
		Registries: []registry.Registry{{Prefix: addr, PlainHTTP: true}}, Attempts: 1, IdleTimeout: 300 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	dir := require.Tmpfs(t, 0, "size=64m")
	s, err := store.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	p := image.New(client, verify.New(verify.DefaultLimits()), decrypt.New(fakeKeys{keyURI: kek()}),
		unpack.New(limits, unpack.WithSpace(s.Free)), s, image.WithPlatform("linux/amd64"))
	heap := watchHeap()
	img, err := p.Pull(t.Context(), image.Request{ContainerID: "c", Reference: addr + "/app:1"})
	if peak := heap(); peak > maxHeap {
		t.Errorf("the pull took %d MiB of memory", peak>>20)
	}
	if err != nil && class(err) == "" {
		t.Errorf("error without a class: %v", err)
	}
	if err != nil && len(err.Error()) > 16<<10 {
		t.Errorf("error has %d bytes", len(err.Error()))
	}
	if err != nil {
		wantEmpty(t, dir)
	}
	return img, err
}

// watchHeap returns a function that says how far the heap grew until it is called.
func watchHeap() func() uint64 {
	runtime.GC()
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(sample)
	before := sample[0].Value.Uint64()
	stop, peak := make(chan struct{}), make(chan uint64)
	go func() {
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		highest := before
		for {
			select {
			case <-stop:
				peak <- highest - before
				return
			case <-tick.C:
				metrics.Read(sample)
				highest = max(highest, sample[0].Value.Uint64())
			}
		}
	}()
	return func() uint64 { close(stop); return <-peak }
}

// TestEvilRegistry lets a registry do to each object what it should not.
func TestEvilRegistry(t *testing.T) {
	require.Root(t)
	img := rt.NewImage([]rt.Layer{encrypt(t, rt.NewLayer(rt.Gzip, rt.Files(map[string]string{"a": strings.Repeat("a", 100_000)})...), keyprovider.WrapGCM)}, nil, nil)
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "something else") }))
	t.Cleanup(other.Close)
	// endless streams stop when the client leaves.
	endless := func(w http.ResponseWriter, r *http.Request, head string) {
		_, err := io.WriteString(w, head)
		for junk := bytes.Repeat([]byte(" x"), 32<<10); err == nil && r.Context().Err() == nil; {
			_, err = w.Write(junk)
		}
	}
	cases := map[string]evil{
		"other bytes":   func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { fmt.Fprint(w, "other bytes") },
		"nothing":       func(http.ResponseWriter, *http.Request, http.Handler) {},
		"endless error": func(w http.ResponseWriter, r *http.Request, _ http.Handler) { w.WriteHeader(400); endless(w, r, "") },
		"endless JSON": func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
			endless(w, r, `{"schemaVersion":2,"annotations":{"a":"`)
		},
		"size is a lie": func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			w.Header().Set("Content-Length", "9000000000000")
			endless(w, r, "")
		},
		"size is negative": func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			raw(w, r, "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello")
		},
		"two sizes": func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			raw(w, r, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello")
		},
		"no HTTP": func(w http.ResponseWriter, r *http.Request, _ http.Handler) { raw(w, r, "SSH-2.0-OpenSSH_9.9\r\n") },
		"silence": func(_ http.ResponseWriter, r *http.Request, _ http.Handler) { <-r.Context().Done() },
		"header bomb": func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			raw(w, r, "HTTP/1.1 200 OK\r\nX: "+strings.Repeat("x", 8<<20)+"\r\n\r\n")
		},
		"many headers": func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			raw(w, r, "HTTP/1.1 200 OK\r\n"+strings.Repeat("X: x\r\n", 1<<20)+"\r\n")
		},
		"many interims": func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			raw(w, r, strings.Repeat("HTTP/1.1 103 Early Hints\r\nX: x\r\n\r\n", 1<<16))
		},
		"chunk bomb": func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			raw(w, r, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"+strings.Repeat("1;x="+strings.Repeat("y", 4000)+"\r\na\r\n", 1<<10))
		},
		"drip": func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			w.Header().Set("Content-Length", "5000")
			for r.Method != http.MethodHead && r.Context().Err() == nil {
				if _, err := w.Write([]byte(" ")); err != nil || http.NewResponseController(w).Flush() != nil {
					return
				}
				time.Sleep(20 * time.Millisecond) // this server's rate is what the case is about
			}
		},
		"redirect to another host": func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			http.Redirect(w, r, other.URL, http.StatusTemporaryRedirect)
		},
		"redirect to a file": func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			http.Redirect(w, r, "file:///etc/passwd", http.StatusTemporaryRedirect)
		},
		"redirect to gopher": func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			http.Redirect(w, r, "gopher://127.0.0.1/", http.StatusTemporaryRedirect)
		},
		"redirect nowhere": func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { w.WriteHeader(307) },
		"redirect in circles": func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
		},
		"login at a file": func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="file:///etc/passwd",service="x",scope="y"`)
			w.WriteHeader(401)
		},
		"login without end": func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+r.URL.Path+`",service="x",scope="y"`)
			w.WriteHeader(401)
			endless(w, r, `{"token":"`)
		},
		"challenge of garbage": func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.Header().Set("WWW-Authenticate", strings.Repeat(`Bearer "=,`, 5000))
			w.WriteHeader(401)
		},
		"digest of garbage": func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.Header().Set("Docker-Content-Digest", "sha256:../../../etc/passwd")
			w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		},
		"encoded": func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write(rt.Pack(bytes.Repeat([]byte("x"), 1<<20), rt.Gzip))
		},
	}
	for _, object := range objects {
		for name, handle := range cases {
			t.Run(object+", "+name, func(t *testing.T) {
				t.Parallel()
				addr := front(t, img, object, handle)
				if _, err := hostilePull(t, addr, unpack.DefaultLimits()); err == nil {
					t.Error("the image was pulled")
				}
			})
		}
	}
}

// raw sends bytes as they are.
func raw(w http.ResponseWriter, _ *http.Request, text string) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, text) // the client may leave first
}

// TestManifestSwap: what a tag names is looked up once. A registry that then sends another manifest is refused; one that
// moves the tag meanwhile has no say any more.
func TestManifestSwap(t *testing.T) {
	require.Root(t)
	build := func(body string) *rt.Image {
		return rt.NewImage([]rt.Layer{rt.NewLayer(rt.Gzip, rt.Files(map[string]string{"f": body})...)}, nil, nil)
	}
	one, two := build("one"), build("two")
	addr := front(t, one, "manifest", func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.Header().Set("Content-Type", two.Desc.MediaType)
		w.Header().Set("Docker-Content-Digest", two.Desc.Digest.String())
		_, _ = w.Write(two.Raw)
	})
	if _, err := hostilePull(t, addr, unpack.DefaultLimits()); err == nil || !strings.Contains(err.Error(), "do not match digest") {
		t.Errorf("other manifest: got %v", err)
	}
	asked := 0
	addr = front(t, one, "tag", func(w http.ResponseWriter, r *http.Request, honest http.Handler) {
		if asked++; asked > 1 {
			w.Header().Set("Content-Type", two.Desc.MediaType)
			w.Header().Set("Docker-Content-Digest", two.Desc.Digest.String())
			_, _ = w.Write(two.Raw)
			return
		}
		honest.ServeHTTP(w, r)
	})
	got, err := hostilePull(t, addr, unpack.DefaultLimits())
	if err != nil || got.ManifestDigest != one.Desc.Digest || readFile(t, got.Layers, "f") != "one" {
		t.Errorf("moved tag: got %+v, %v", got, err)
	}
}

// TestHostileDocuments pulls documents that are true to their digests and otherwise wrong.
func TestHostileDocuments(t *testing.T) {
	require.Root(t)
	layer := rt.NewLayer(rt.Gzip, rt.Entry{Name: "f"})
	good := rt.NewImage([]rt.Layer{layer}, nil, nil)
	text := string(good.Raw)
	manifest := func(edit func(*ocispec.Manifest)) string {
		return string(rt.NewImage([]rt.Layer{layer}, nil, edit).Raw)
	}
	self := func(mediaType string) string {
		entry := fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":500,"platform":{"os":"linux","architecture":"amd64"}}`, mediaType, good.Desc.Digest)
		return `{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageIndex + `","manifests":[` + entry + `]}`
	}
	cases := map[string]string{
		"index in an index":         self(ocispec.MediaTypeImageIndex),
		"index that misstates size": self(ocispec.MediaTypeImageManifest),
		"index of thousands":        `{"schemaVersion":2,"manifests":[` + strings.Repeat(`{},`, 1<<20) + `{}]}`,
		"nothing but brackets":      strings.Repeat("[", 3<<20),
		"nested annotations":        `{"schemaVersion":2,"x":` + strings.Repeat(`{"x":`, 1<<18) + strings.Repeat("}", 1<<18) + `}`,
		"thousands of layers":       manifest(func(m *ocispec.Manifest) { m.Layers = make([]ocispec.Descriptor, 10_000) }),
		"one layer 300 times": manifest(func(m *ocispec.Manifest) {
			for range 299 {
				m.Layers = append(m.Layers, m.Layers[0])
			}
		}),
		"layer that is the manifest's configuration": manifest(func(m *ocispec.Manifest) { m.Config = m.Layers[0]; m.Config.MediaType = ocispec.MediaTypeImageConfig }),
		"configuration as layer": manifest(func(m *ocispec.Manifest) {
			kind := m.Layers[0].MediaType
			m.Layers[0] = m.Config
			m.Layers[0].MediaType = kind
		}),
		"layer of no size":       manifest(func(m *ocispec.Manifest) { m.Layers[0].Size = 0 }),
		"layer of negative size": manifest(func(m *ocispec.Manifest) { m.Layers[0].Size = -1 }),
		"layer too small":        manifest(func(m *ocispec.Manifest) { m.Layers[0].Size-- }),
		"layer too large":        manifest(func(m *ocispec.Manifest) { m.Layers[0].Size++ }),
		"layer of an exabyte":    manifest(func(m *ocispec.Manifest) { m.Layers[0].Size = 1 << 60 }),
		"digest that is a path":  manifest(func(m *ocispec.Manifest) { m.Layers[0].Digest = "sha256:../../../../etc/passwd" }),
		"digest of another kind": manifest(func(m *ocispec.Manifest) { m.Layers[0].Digest = "md5:d41d8cd98f00b204e9800998ecf8427e" }),
		"type without end":       manifest(func(m *ocispec.Manifest) { m.Layers[0].MediaType = strings.Repeat("x", 1<<20) }),
		"encrypted, no key":      manifest(func(m *ocispec.Manifest) { m.Layers[0].MediaType += "+encrypted" }),
		"list of keys without end": manifest(func(m *ocispec.Manifest) {
			m.Layers[0].MediaType += "+encrypted"
			m.Layers[0].Annotations = map[string]string{
				keyprovider.LayerAnnotation: strings.Repeat("e30=,", 40_000), "org.opencontainers.image.enc.pubopts": "e30=",
			}
		}),
		"cut":            text[:len(text)/2],
		"two documents":  text + text,
		"empty":          "",
		"null":           "null",
		"numbers":        strings.NewReplacer(`"size":`, `"size":1e400,"x":`).Replace(text),
		"wrong JSON":     strings.ReplaceAll(text, `"layers":[`, `"layers":["x",`),
		"no UTF-8":       strings.ReplaceAll(text, "sha256", "sha\xff56"),
		"list of layers": strings.ReplaceAll(text, `"layers":[`, `"layers":[`+strings.Repeat(`{},`, 1<<20)),
	}
	for name, doc := range cases {
		t.Run(name, func(t *testing.T) {
			kind := ocispec.MediaTypeImageManifest
			if strings.HasPrefix(name, "index") {
				kind = ocispec.MediaTypeImageIndex
			}
			bad := &rt.Image{Raw: []byte(doc), Desc: rt.Descriptor(kind, []byte(doc)), Blobs: maps.Clone(good.Blobs)}
			addr := front(t, bad, "", nil)
			if _, err := hostilePull(t, addr, unpack.DefaultLimits()); err == nil {
				t.Error("the image was pulled")
			}
		})
	}
}

// TestHostileConfigs pulls configurations that are true to their digests and otherwise wrong.
func TestHostileConfigs(t *testing.T) {
	require.Root(t)
	layer := rt.NewLayer(rt.Gzip, rt.Entry{Name: "f"})
	id := `"` + string(layer.DiffID) + `"`
	config := func(ids, more string) string {
		return `{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[` + ids + `]}` + more + `}`
	}
	cases := map[string]struct {
		doc    string
		pulled bool // odd, and no harm
	}{
		"honest":                 {config(id, ""), true},
		"history without end":    {config(id, `,"history":[`+strings.Repeat(`{},`, 1_300_000)+`{}]`), true},
		"diff ids without end":   {config(strings.Repeat(id+",", 40_000)+id, ""), false},
		"diff id of nothing":     {config(`""`, ""), false},
		"diff id of other bytes": {config(`"`+string(digest.FromString("x"))+`"`, ""), false},
		"diff id that is a path": {config(`"sha256:../../../../etc/passwd"`, ""), false},
		"nested":                 {config(id, `,"x":`+strings.Repeat(`[`, 1<<20)+strings.Repeat(`]`, 1<<20)), false},
		"larger than allowed":    {config(id, `,"x":"`+strings.Repeat("x", 5<<20)+`"`), false},
		"for no system":          {strings.ReplaceAll(config(id, ""), "amd64", "z80"), false},
		"empty":                  {"{}", false},
		"cut":                    {config(id, "")[:40], false},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			img := rt.NewImage([]rt.Layer{layer}, nil, func(m *ocispec.Manifest) { m.Config = rt.Descriptor(m.Config.MediaType, []byte(tc.doc)) })
			img.Blobs[img.Manifest.Config.Digest] = []byte(tc.doc)
			addr := front(t, img, "", nil)
			if _, err := hostilePull(t, addr, unpack.DefaultLimits()); (err == nil) != tc.pulled {
				t.Errorf("got %v, want success %t", err, tc.pulled)
			}
		})
	}
}
