package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-project/coffer/integration/registrytest"
)

// front is a server with a registry behind it. handle answers what it wants to and leaves the rest to the registry.
func front(t *testing.T, handle func(w http.ResponseWriter, r *http.Request, honest http.Handler)) (*registrytest.Registry, string) {
	t.Helper()
	r := registrytest.New()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) { handle(w, req, r) }))
	t.Cleanup(s.Close)
	return r, strings.TrimPrefix(s.URL, "http://")
}

func isBlob(r *http.Request) bool { return strings.Contains(r.URL.Path, "/blobs/") }

// TestBlobMovesOn: a mirror that fails in the middle of a blob is left for the registry, which goes on at the same byte.
func TestBlobMovesOn(t *testing.T) {
	good, bad := registrytest.Start(t), registrytest.Start(t)
	ref, img := put(good, 1<<20)
	put(bad, 1<<20)
	half := fmt.Sprintf("bytes=%d-", len(img.Layers[0].Blob)/2)
	cases := map[string]struct {
		fault registrytest.Fault
		from  string // how the range begins that the registry is asked for
	}{
		"breaks for ever": {registrytest.Fault{Action: registrytest.Truncate}, "bytes="},
		"stalls":          {registrytest.Fault{Action: registrytest.Stall, Times: 1}, half},
		"is short":        {registrytest.Fault{Action: registrytest.Short}, half},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			bad.Heal()
			tc.fault.Kind = registrytest.LayerBlob
			bad.Inject(tc.fault)
			if tc.fault.Times > 0 {
				bad.Inject(registrytest.Fault{Kind: registrytest.LayerBlob, Action: registrytest.Status, Status: 404})
			}
			c := newClient(t, good, func(c *Config) {
				c.Registries = []Registry{{Prefix: good.Addr(), PlainHTTP: true, Mirrors: []Mirror{{Location: bad.Addr(), PlainHTTP: true}}}}
			})
			before := len(good.Requests())
			blob, err := readBlob(t.Context(), c, ref, img)
			if err != nil || !bytes.Equal(blob, img.Layers[0].Blob) {
				t.Fatalf("got %d bytes, %v", len(blob), err)
			}
			asked := good.Requests()[before:]
			if len(asked) != 1 || !strings.HasPrefix(asked[0].Range, tc.from) {
				t.Errorf("registry was asked %+v; want one request for %s", asked, tc.from)
			}
		})
	}
}

// TestLiarIsLeft: what a mirror has sent cannot be taken back, so the call fails; the next one asks somebody else.
func TestLiarIsLeft(t *testing.T) {
	good, bad := registrytest.Start(t), registrytest.Start(t)
	ref, img := put(good, 1<<10)
	put(bad, 1<<10)
	bad.Inject(registrytest.Fault{Kind: registrytest.LayerBlob, Action: registrytest.FlipByte})
	c := newClient(t, good, func(c *Config) {
		c.Registries = []Registry{{Prefix: good.Addr(), PlainHTTP: true, Mirrors: []Mirror{{Location: bad.Addr(), PlainHTTP: true}}}}
	})
	again := func(err error) bool {
		lie, ok := errors.AsType[*lieError](err)
		return ok && lie.Again()
	}
	if _, err := readBlob(t.Context(), c, ref, img); !errors.Is(err, errdefs.ErrFailedPrecondition) || !again(err) || !strings.Contains(err.Error(), bad.Addr()) {
		t.Fatalf("mirror lies: %v", err)
	}
	if _, err := readBlob(t.Context(), c, ref, img); err != nil {
		t.Fatalf("registry was not asked: %v", err)
	}
	good.Inject(registrytest.Fault{Kind: registrytest.LayerBlob, Action: registrytest.FlipByte})
	if _, err := readBlob(t.Context(), c, ref, img); err == nil || again(err) {
		t.Errorf("everybody lies: %v", err)
	}
}

func TestLimits(t *testing.T) {
	cases := map[string]struct {
		handle  func(w http.ResponseWriter, r *http.Request, honest http.Handler)
		wantErr error
		text    string
	}{
		"headers without end": {func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			for i := range 100 {
				w.Header().Set(fmt.Sprintf("X-%d", i), strings.Repeat("h", 1<<10))
			}
		}, errdefs.ErrFailedPrecondition, "more than 65536 bytes of headers"},
		"another range": {func(w http.ResponseWriter, r *http.Request, honest http.Handler) {
			if r.Header.Get("Range") == "" {
				w.Header().Set("Content-Length", "2000000")
				fmt.Fprint(w, "some bytes")
				_ = http.NewResponseController(w).Flush()
				panic(http.ErrAbortHandler)
			}
			r.Header.Set("Range", "bytes=1-")
			honest.ServeHTTP(w, r)
		}, errdefs.ErrFailedPrecondition, "answered with range"},
		"no content":      {func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { w.WriteHeader(204) }, errdefs.ErrFailedPrecondition, "answered 204"},
		"to a file":       {redirect("file:///etc/passwd"), errdefs.ErrFailedPrecondition, "neither http nor https"},
		"with a password": {redirect("http://me:secret@example.invalid/"), errdefs.ErrFailedPrecondition, "user name in it"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, addr := front(t, func(w http.ResponseWriter, r *http.Request, honest http.Handler) {
				if isBlob(r) {
					tc.handle(w, r, honest)
					return
				}
				honest.ServeHTTP(w, r)
			})
			_, img := put(r, 1<<20)
			c := newClient(t, r, func(c *Config) { c.Registries = []Registry{{Prefix: addr, PlainHTTP: true}} })
			_, err := readBlob(t.Context(), c, addr+"/app:1", img)
			if !errors.Is(err, tc.wantErr) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("got %v; want %v with %q", err, tc.wantErr, tc.text)
			}
		})
	}
}

func redirect(to string) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		http.Redirect(w, r, to, http.StatusFound)
	}
}

func TestRedirectRules(t *testing.T) {
	cases := map[string]struct {
		from, to string
		refused  bool
		kept     bool // credentials go along
	}{
		"storage":           {"https://r.example/v2/", "https://s3.example/x", false, false},
		"below the host":    {"https://example/v2/", "https://blobs.example/x", false, false},
		"other port":        {"https://r.example/v2/", "https://r.example:8443/x", false, false},
		"same host":         {"https://r.example/v2/", "https://r.example/x", false, true},
		"down to http":      {"https://r.example/v2/", "http://r.example/x", true, false},
		"up to https":       {"http://r.example/v2/", "https://r.example/x", false, false},
		"metadata service":  {"https://r.example/v2/", "https://169.254.169.254/latest", true, false},
		"guest itself":      {"http://r.example/v2/", "http://127.0.0.1:8006/cdh/resource/a/b/c", true, false},
		"guest by name":     {"http://r.example/v2/", "http://localhost/", true, false},
		"guest as IPv6":     {"http://r.example/v2/", "http://[::ffff:127.0.0.1]/", true, false},
		"nowhere":           {"http://r.example/v2/", "http://0.0.0.0/", true, false},
		"between local":     {"http://127.0.0.1:1/v2/", "http://127.0.0.1:2/", false, false},
		"other scheme":      {"http://r.example/v2/", "ftp://r.example/", true, false},
		"name and password": {"http://r.example/v2/", "http://a:b@r.example/", true, false},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			first, second := httptest.NewRequest(http.MethodGet, tc.from, nil), httptest.NewRequest(http.MethodGet, tc.to, nil)
			second.Header = http.Header{"Authorization": {"Bearer x"}, "X-Secret": {"y"}, "Range": {"bytes=1-"}}
			err := checkRedirect(second, []*http.Request{first})
			if (err != nil) != tc.refused {
				t.Fatalf("got %v, want refused %t", err, tc.refused)
			}
			if err != nil {
				return
			}
			for _, key := range []string{"Authorization", "X-Secret"} {
				if (second.Header.Get(key) != "") != tc.kept {
					t.Errorf("%s is %q, want kept %t", key, second.Header.Get(key), tc.kept)
				}
			}
			if second.Header.Get("Range") == "" {
				t.Error("range is lost")
			}
		})
	}
}

// TestSignedAddressIsNotTold: what a registry redirects to is as good as a password.
func TestSignedAddressIsNotTold(t *testing.T) {
	r, addr := front(t, func(w http.ResponseWriter, r *http.Request, honest http.Handler) {
		if !isBlob(r) {
			honest.ServeHTTP(w, r)
			return
		}
		redirect("http://127.0.0.1:1/blob?signature=SECRET")(w, r, honest)
	})
	_, img := put(r, 10)
	c := newClient(t, r, func(c *Config) { c.Registries = []Registry{{Prefix: addr, PlainHTTP: true}} })
	_, err := readBlob(t.Context(), c, addr+"/app:1", img)
	if !errors.Is(err, errdefs.ErrUnavailable) || strings.Contains(err.Error(), "SECRET") {
		t.Errorf("got %v", err)
	}
}

// TestDeadlineNamesTheCause: with no time for another attempt, the answer comes at once and says what went wrong.
func TestDeadlineNamesTheCause(t *testing.T) {
	r := registrytest.Start(t)
	ref, img := put(r, 10)
	r.Inject(registrytest.Fault{Kind: registrytest.LayerBlob, Action: registrytest.Status, Status: 503, RetryAfter: 20 * time.Second})
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	start := time.Now()
	_, err := readBlob(ctx, newClient(t, r, nil), ref, img)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "503") || ctx.Err() != nil {
		t.Errorf("got %v after %s", err, time.Since(start))
	}
}

// TestManifestIsAskedForAgain: a document that breaks off costs another request, not the pull.
func TestManifestIsAskedForAgain(t *testing.T) {
	r := registrytest.Start(t)
	ref, img := put(r, 10)
	r.Inject(registrytest.Fault{Kind: registrytest.Manifest, Action: registrytest.Truncate, Times: 1})
	raw, err := newClient(t, r, nil).Manifest(t.Context(), ref, img.Desc.Digest, 1<<20)
	if err != nil || !bytes.Equal(raw, img.Raw) {
		t.Errorf("got %d bytes, %v", len(raw), err)
	}
}

// TestResolveWithoutHead: a registry may know no HEAD, or not name the digest.
func TestResolveWithoutHead(t *testing.T) {
	for name, status := range map[string]int{"no HEAD": http.StatusMethodNotAllowed, "no digest": http.StatusOK} {
		t.Run(name, func(t *testing.T) {
			var heads atomic.Int32
			r, addr := front(t, func(w http.ResponseWriter, r *http.Request, honest http.Handler) {
				if r.Method == http.MethodHead {
					heads.Add(1)
					w.WriteHeader(status)
					return
				}
				honest.ServeHTTP(w, r)
			})
			_, img := put(r, 10)
			c := newClient(t, r, func(c *Config) { c.Registries = []Registry{{Prefix: addr, PlainHTTP: true}} })
			d, err := c.Resolve(t.Context(), addr+"/app:1")
			if err != nil || d != img.Desc.Digest || heads.Load() != 1 {
				t.Errorf("got %s, %v after %d HEAD", d, err, heads.Load())
			}
		})
	}
}

// TestEmptyBlob: a blob of no bytes is read like any other.
func TestEmptyBlob(t *testing.T) {
	r := registrytest.Start(t)
	desc := registrytest.Descriptor(ocispec.MediaTypeImageLayer, nil)
	r.PutBlob(desc.Digest, nil)
	rc, err := newClient(t, r, nil).Blob(t.Context(), r.Ref("app", "1"), desc, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	if raw, err := io.ReadAll(rc); err != nil || len(raw) != 0 {
		t.Errorf("got %d bytes, %v", len(raw), err)
	}
}
