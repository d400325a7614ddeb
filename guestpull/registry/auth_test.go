package registry

import (
	"context"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/integration/registrytest"
)

// tokenService is a registry that wants bearer tokens, and the service that gives them out.
type tokenService struct {
	t    *testing.T
	addr string

	mu     sync.Mutex
	grants []string // how tokens were asked for
}

func (s *tokenService) serve(w http.ResponseWriter, r *http.Request, honest http.Handler) {
	if r.URL.Path == "/token" {
		s.token(w, r)
		return
	}
	if r.Header.Get("Authorization") != "Bearer good" {
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="test",scope="repository:app:pull"`, s.addr))
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	honest.ServeHTTP(w, r)
}

func (s *tokenService) token(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		s.t.Error(err)
	}
	if got := r.Form.Get("scope"); got != "repository:app:pull" {
		s.t.Errorf("scope is %q", got)
	}
	grant := r.Form.Get("grant_type")
	ok := grant == "password" && r.Form.Get("username") == "me" && r.Form.Get("password") == "secret" ||
		grant == "refresh_token" && r.Form.Get("refresh_token") == "identity"
	if r.Method == http.MethodGet {
		user, password, has := r.BasicAuth()
		grant, ok = "basic", user == "me" && password == "secret"
		if !has {
			grant, ok = "anonymous", true
		}
	}
	s.mu.Lock()
	s.grants = append(s.grants, grant)
	s.mu.Unlock()
	if !ok {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	fmt.Fprint(w, `{"token":"good","access_token":"good","expires_in":300}`)
}

func TestBearer(t *testing.T) {
	cases := map[string]struct {
		shown     Credential
		wantErr   error
		wantGrant []string
	}{
		"anonymous":          {Credential{}, nil, []string{"anonymous"}},
		"password":           {Credential{User: "me", Password: "secret"}, nil, []string{"password"}},
		"identity token":     {Credential{IdentityToken: "identity"}, nil, []string{"refresh_token"}},
		"registry token":     {Credential{RegistryToken: "good"}, nil, nil},
		"bad registry token": {Credential{RegistryToken: "bad-token"}, errdefs.ErrUnauthenticated, nil},
		"bad password":       {Credential{User: "me", Password: "bad-token"}, errdefs.ErrUnauthenticated, []string{"password", "basic"}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			s := &tokenService{t: t}
			r, addr := front(t, s.serve)
			s.addr = addr
			_, img := put(r, 10)
			asked := 0
			c := newClient(t, r, func(c *Config) {
				c.Registries = []Registry{{Prefix: addr, PlainHTTP: true}}
				c.Credentials = func(_ context.Context, repository string) (Credential, error) {
					if asked++; repository != addr+"/app" {
						t.Errorf("asked for credentials of %s", repository)
					}
					return tc.shown, nil
				}
			})
			for range 2 { // the second pull has the token
				_, err := readBlob(t.Context(), c, addr+"/app:1", img)
				if !errors.Is(err, tc.wantErr) || (err != nil && strings.Contains(err.Error(), "bad-token")) {
					t.Fatalf("got %v, want %v", err, tc.wantErr)
				}
				if err != nil {
					break
				}
			}
			if !slices.Equal(s.grants, tc.wantGrant) || asked != 1 {
				t.Errorf("tokens asked for by %q, want %q; credentials asked for %d times", s.grants, tc.wantGrant, asked)
			}
		})
	}
}

// TestTokenServiceInTheOpen: a registry that speaks https cannot have its credentials sent over http.
func TestTokenServiceInTheOpen(t *testing.T) {
	r := registrytest.New()
	asked := false
	open := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked = true }))
	t.Cleanup(open.Close)
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token"`, open.URL))
		w.WriteHeader(http.StatusUnauthorized)
	}))
	t.Cleanup(s.Close)
	_, img := put(r, 10)
	c := newClient(t, r, func(c *Config) {
		c.Registries = nil
		c.ExtraRoots = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
		c.Credentials = func(context.Context, string) (Credential, error) {
			return Credential{User: "me", Password: "secret"}, nil
		}
	})
	_, err := readBlob(t.Context(), c, strings.TrimPrefix(s.URL, "https://")+"/app:1", img)
	if !errors.Is(err, errdefs.ErrFailedPrecondition) || asked || !strings.Contains(err.Error(), "no credentials are sent") {
		t.Errorf("got %v, asked %t", err, asked)
	}
}

// TestCredentialsOnlyWhereWanted: an open registry costs no request to the broker, and a broker that fails is named.
func TestCredentialsOnlyWhereWanted(t *testing.T) {
	r := registrytest.Start(t)
	ref, img := put(r, 10)
	c := newClient(t, r, func(c *Config) {
		c.Credentials = func(context.Context, string) (Credential, error) {
			return Credential{}, fmt.Errorf("broker is away: %w", errdefs.ErrUnavailable)
		}
	})
	if _, err := readBlob(t.Context(), c, ref, img); err != nil {
		t.Fatal(err)
	}
	r.RequireLogin("me", "secret")
	_, err := readBlob(t.Context(), c, ref, img)
	if !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), "credentials for "+r.Addr()+"/app: broker is away") {
		t.Errorf("got %v", err)
	}
}

func TestAuthFile(t *testing.T) {
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	file, err := ParseAuthFile([]byte(`{"auths": {
		"https://index.docker.io/v1/": {"auth": "` + b64("hub:1") + `"},
		"docker.io/private": {"auth": "` + b64("private:2") + `"},
		"r.example:5000": {"auth": "` + b64("port:a:b") + `"},
		"r.example/team": {"identitytoken": "id"},
		"r.example/team/app": {"auth": "` + b64("app:4") + `"},
		"r.example": {"username": "plain", "password": "5"},
		"t.example/": {"registrytoken": "rt"}
	}, "credsStore": "desktop"}`))
	if err != nil {
		t.Fatal(err)
	}
	for repository, want := range map[string]Credential{
		"docker.io/library/busybox":  {User: "hub", Password: "1"},
		"docker.io/private/x":        {User: "private", Password: "2"},
		"docker.io/privateer/x":      {User: "hub", Password: "1"},
		"r.example:5000/x":           {User: "port", Password: "a:b"},
		"r.example/team/app":         {User: "app", Password: "4"},
		"r.example/team/app/sub":     {User: "app", Password: "4"},
		"r.example/team/apple":       {IdentityToken: "id"},
		"r.example/other":            {User: "plain", Password: "5"},
		"sub.r.example/x":            {},
		"t.example/x":                {RegistryToken: "rt"},
		"registry-1.docker.io/lib/x": {User: "hub", Password: "1"},
	} {
		if got := file.Find(repository); got != want {
			t.Errorf("%s: got %+v, want %+v", repository, got, want)
		}
	}
	for name, text := range map[string]string{
		"no JSON": "x", "no base64": `{"auths":{"a":{"auth":"SECRET!"}}}`, "no colon": `{"auths":{"a":{"auth":"U0VDUkVU"}}}`,
		"too long": `{"x":"` + strings.Repeat("x", maxAuthFile) + `"}`,
	} {
		if _, err := ParseAuthFile([]byte(text)); !errors.Is(err, errdefs.ErrInvalidArgument) || strings.Contains(err.Error(), "SECRET") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzAuthFile(f *testing.F) {
	f.Add([]byte(`{"auths":{"https://r.example/v1/":{"auth":"YTpi"},"r.example/a":{"identitytoken":"x"}}}`), "r.example/a/b")
	f.Fuzz(func(_ *testing.T, raw []byte, repository string) {
		file, err := ParseAuthFile(raw)
		if err != nil {
			return
		}
		file.Find(repository)
	})
}
