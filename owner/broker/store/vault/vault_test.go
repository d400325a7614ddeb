package vault

import (
	"cmp"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/owner/broker/store"
	"github.com/coffer-project/coffer/owner/broker/store/storetest"
)

// double answers as the documented KV version 2 API does, as far as the store uses it. It is no proof that a real server does.
type double struct {
	mu      sync.Mutex
	secrets map[string]json.RawMessage
	status  int // answered instead, when not 0
	said    string
}

func (d *double) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	fail := func(status int, words ...string) {
		w.WriteHeader(status)
		json.NewEncoder(w).Encode(map[string]any{"errors": append([]string{}, words...)})
	}
	switch {
	case d.status != 0:
		fail(d.status, cmp.Or(d.said, "told to by the test"))
		return
	case r.Header.Get("X-Vault-Token") != "s.token" || r.Header.Get("X-Vault-Namespace") != "team":
		fail(http.StatusForbidden, "permission denied")
		return
	}
	if name, ok := strings.CutPrefix(r.URL.Path, "/v1/kv/data/coffer/"); ok {
		d.data(w, r, name, fail)
	} else if name, ok := strings.CutPrefix(r.URL.Path, "/v1/kv/metadata/coffer/"); ok {
		d.metadata(w, r, name, fail)
	} else {
		fail(http.StatusNotFound)
	}
}

func (d *double) data(w http.ResponseWriter, r *http.Request, name string, fail func(int, ...string)) {
	found, ok := d.secrets[name]
	if r.Method == http.MethodGet {
		if !ok {
			fail(http.StatusNotFound)
			return
		}
		json.NewEncoder(w).Encode(map[string]any{"data": map[string]any{"data": found, "metadata": map[string]any{"version": 1}}})
		return
	}
	var body struct {
		Data    json.RawMessage `json:"data"`
		Options struct {
			CAS *int `json:"cas"`
		} `json:"options"`
	}
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil || r.Method != http.MethodPost {
		fail(http.StatusBadRequest, "malformed")
		return
	}
	if body.Options.CAS != nil && *body.Options.CAS == 0 && ok {
		fail(http.StatusBadRequest, "check-and-set parameter did not match the current version")
		return
	}
	d.secrets[name] = body.Data
	json.NewEncoder(w).Encode(map[string]any{"data": map[string]any{"version": 1}})
}

func (d *double) metadata(w http.ResponseWriter, r *http.Request, folder string, fail func(int, ...string)) {
	if r.Method == http.MethodDelete {
		delete(d.secrets, folder)
		w.WriteHeader(http.StatusNoContent)
		return
	}
	keys := map[string]bool{}
	for name := range d.secrets {
		if rest, ok := strings.CutPrefix(name, folder+"/"); ok {
			first, _, more := strings.Cut(rest, "/")
			if more {
				first += "/"
			}
			keys[first] = true
		}
	}
	if len(keys) == 0 || r.URL.Query().Get("list") != "true" {
		fail(http.StatusNotFound)
		return
	}
	list := []string{}
	for key := range keys {
		list = append(list, key)
	}
	sort.Strings(list)
	json.NewEncoder(w).Encode(map[string]any{"data": map[string]any{"keys": list}})
}

func start(t *testing.T) (*double, *Store, Options) {
	t.Helper()
	d := &double{secrets: map[string]json.RawMessage{}}
	server := httptest.NewServer(d)
	t.Cleanup(server.Close)
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("s.token\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	o := Options{URL: server.URL + "/", Mount: "kv", Prefix: "coffer", Namespace: "team", TokenFile: token}
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return d, s, o
}

func TestStore(t *testing.T) {
	_, s, o := start(t)
	storetest.Run(t, s, func() store.Store {
		other, err := Open(o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { other.Close() })
		return other
	})
}

func TestForeignSecrets(t *testing.T) {
	d, s, _ := start(t)
	const name = "resource/default/key/1"
	for content, want := range map[string]string{
		`{"data":"by hand"}`:                       "by hand",
		`{"data":"YnkgdXM=","encoding":"base64"}`:  "by us",
		`{"data":"by hand","encoding":"utf-8"}`:    "by hand",
		`{"data":"no base64","encoding":"base64"}`: "",
		`{"data":[1,2]}`:                           "",
		`{"password":"x"}`:                         "",
		`null`:                                     "",
	} {
		d.secrets[name] = json.RawMessage(content)
		got, err := s.Get(t.Context(), name)
		if string(got) != want || (want == "") != errors.Is(err, errdefs.ErrFailedPrecondition) {
			t.Errorf("%s: %q, %v", content, got, err)
		}
	}
}

func TestFailures(t *testing.T) {
	d, s, o := start(t)
	for status, class := range map[int]error{
		403: errdefs.ErrPermissionDenied, 429: errdefs.ErrUnavailable, 500: errdefs.ErrUnavailable, 503: errdefs.ErrUnavailable,
		307: errdefs.ErrInternal, 418: errdefs.ErrInternal,
	} {
		d.status = status
		if _, err := s.Get(t.Context(), "resource/a/b/c"); !errors.Is(err, class) || strings.Contains(err.Error(), "s.token") {
			t.Errorf("status %d: %v", status, err)
		}
	}
	for said, class := range map[string]error{ // words of OpenBao 2.6.2
		"Upgrading from non-versioned to versioned data. This backend will be unavailable for a brief period":  errdefs.ErrUnavailable,
		"1 error occurred:\n\t* put failed due to value being too large; got 156 bytes, max 1048576 bytes\n\n": errdefs.ErrFailedPrecondition,
	} {
		d.status, d.said = 400, said
		if errors.Is(class, errdefs.ErrFailedPrecondition) {
			d.status = 500
		}
		if err := s.Put(t.Context(), "resource/a/b/c", []byte("x")); !errors.Is(err, class) {
			t.Errorf("%s: %v", said, err)
		}
	}
	d.status, d.said = 0, ""
	if err := os.WriteFile(o.TokenFile, []byte("s.other"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(t.Context(), "resource/a/b/c"); !errors.Is(err, errdefs.ErrPermissionDenied) || !strings.Contains(err.Error(), "token_file") {
		t.Errorf("renewed token: %v", err)
	}
	o.URL = "http://127.0.0.1:1"
	down, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := down.Put(t.Context(), "resource/a/b/c", []byte("x")); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("down: %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	for name, edit := range map[string]func(*Options){
		"no URL":     func(o *Options) { o.URL = "" },
		"plain http": func(o *Options) { o.URL = "http://vault.example:8200" },
		"password":   func(o *Options) { o.URL = "https://user:pw@vault.example" },
		"no token":   func(o *Options) { o.TokenFile = "" },
		"no mount":   func(o *Options) { o.Mount = "" },
		"mount":      func(o *Options) { o.Mount = "../sys" },
		"prefix":     func(o *Options) { o.Prefix = "a/../b" },
		"CA":         func(o *Options) { o.CACertPEM = []byte("x") },
	} {
		o := Options{URL: "https://vault.example:8200", Mount: "secret", TokenFile: "/t"}
		if _, err := Open(o); err != nil {
			t.Fatal(err)
		}
		edit(&o)
		if _, err := Open(o); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
