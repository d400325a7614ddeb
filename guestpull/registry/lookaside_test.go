package registry

import (
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// TestGet: an address of the measured document is asked with the limits of registries, and not believed more than they are.
func TestGet(t *testing.T) {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/a":
			_, _ = w.Write([]byte("12345"))
		case "/down":
			http.Redirect(w, r, "http://example.invalid/a", http.StatusFound)
		case "/again":
			http.Redirect(w, r, "/a", http.StatusFound)
		case "/cut":
			w.Header().Set("Content-Length", "9")
			_, _ = w.Write([]byte("12345"))
		default:
			http.NotFound(w, r)
		}
	})
	plain, secure := httptest.NewServer(handler), httptest.NewTLSServer(handler)
	t.Cleanup(plain.Close)
	t.Cleanup(secure.Close)
	roots := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw})
	for name, tc := range map[string]struct {
		address, word string
		roots         []byte
		want          error
	}{
		"http":              {plain.URL + "/a", "", nil, nil},
		"https":             {secure.URL + "/a", "", roots, nil},
		"redirect":          {plain.URL + "/again", "", nil, nil},
		"untrusted":         {secure.URL + "/a", "certificate is not trusted", nil, errdefs.ErrFailedPrecondition},
		"redirect to http":  {secure.URL + "/down", "from https to http", roots, errdefs.ErrFailedPrecondition},
		"nothing there":     {plain.URL + "/b", "404", nil, errdefs.ErrNotFound},
		"breaks off":        {plain.URL + "/cut", "registry", nil, errdefs.ErrUnavailable},
		"nobody answers":    {"http://127.0.0.1:1/a", "cannot be reached", nil, errdefs.ErrUnavailable},
		"file":              {"file:///etc/passwd", "none that is allowed", nil, errdefs.ErrInvalidArgument},
		"with a password":   {"http://u:p@127.0.0.1/a", "none that is allowed", nil, errdefs.ErrInvalidArgument},
		"no host":           {"http:///a", "none that is allowed", nil, errdefs.ErrInvalidArgument},
		"not even a number": {"http://[", "none that is allowed", nil, errdefs.ErrInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := New(Config{ExtraRoots: tc.roots, Attempts: 1})
			if err != nil {
				t.Fatal(err)
			}
			raw, err := c.Get(t.Context(), tc.address, 5)
			if !errors.Is(err, tc.want) || (err != nil && !strings.Contains(err.Error(), tc.word)) || (err == nil && string(raw) != "12345") {
				t.Errorf("got %q, %v, want %v with %q", raw, err, tc.want, tc.word)
			}
		})
	}
	c, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Get(t.Context(), plain.URL+"/a", 4); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "more than 4 bytes") {
		t.Errorf("too large: %v", err)
	}
}
