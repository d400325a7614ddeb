package vault

import (
	"crypto/rand"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/owner/broker/store"
	"github.com/coffer-project/coffer/owner/broker/store/storetest"
)

// The double says what the API's documents say; this is where a real server has the word. With a token file in $f,
//
//	bao server -dev -dev-root-token-id="$(cat "$f")" &
//	COFFER_VAULT_URL=http://127.0.0.1:8200 COFFER_VAULT_TOKEN_FILE=$f go test -run RealServer ./owner/broker/store/vault
func TestRealServer(t *testing.T) {
	o := Options{URL: os.Getenv("COFFER_VAULT_URL"), Mount: "secret", Prefix: "coffer-test/" + rand.Text(), TokenFile: os.Getenv("COFFER_VAULT_TOKEN_FILE")}
	if o.URL == "" {
		t.Skip("COFFER_VAULT_URL and COFFER_VAULT_TOKEN_FILE name no server of Vault or OpenBao")
	}
	open := func(o Options) *Store {
		t.Helper()
		s, err := Open(o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	s := open(o)
	storetest.Run(t, s, func() store.Store { return open(o) })

	t.Run("written by hand", func(t *testing.T) {
		token, err := os.ReadFile(o.TokenFile)
		if err != nil {
			t.Fatal(err)
		}
		url := strings.Join([]string{strings.TrimSuffix(o.URL, "/"), "v1", o.Mount, "data", o.Prefix, "resource/by/hand/1"}, "/")
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(`{"data":{"data":"plain text"}}`))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Vault-Token", strings.TrimSpace(string(token)))
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got, err := s.Get(t.Context(), "resource/by/hand/1"); err != nil || string(got) != "plain text" {
			t.Errorf("got %q, %v", got, err)
		}
		if err := s.Delete(t.Context(), "resource/by/hand/1"); err != nil {
			t.Error(err)
		}
	})

	t.Run("wrong token", func(t *testing.T) {
		wrong := o
		wrong.TokenFile = filepath.Join(t.TempDir(), "token")
		if err := os.WriteFile(wrong.TokenFile, []byte("s.nobody"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := open(wrong).Get(t.Context(), "resource/a/b/c"); !errors.Is(err, errdefs.ErrPermissionDenied) {
			t.Errorf("got %v", err)
		}
	})

	t.Run("wrong mount", func(t *testing.T) {
		wrong := o
		wrong.Mount = "nowhere"
		if err := open(wrong).Put(t.Context(), "resource/a/b/c", []byte("x")); err == nil {
			t.Error("something was stored in an engine that is not there")
		}
	})
}
