package kbs

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/guestpull/attest"
	proto "github.com/coffer-project/coffer/proto/kbs"
)

func TestNewRefuses(t *testing.T) {
	sample := attest.NewSample()
	for name, o := range map[string]Options{
		"no URL":      {Attester: sample},
		"no host":     {URL: "https://", Attester: sample},
		"scheme":      {URL: "ftp://kbs", Attester: sample},
		"password":    {URL: "https://user:hunter2@kbs", Attester: sample},
		"query":       {URL: "https://kbs?x=1", Attester: sample},
		"no attester": {URL: "https://kbs"},
		"CA on http":  {URL: "http://kbs", Attester: sample, CACertPEM: []byte("x")},
		"bad CA":      {URL: "https://kbs", Attester: sample, CACertPEM: []byte("x")},
		"two trusts":  {URL: "https://kbs", Attester: sample, CACertPEM: []byte("x"), HTTPClient: http.DefaultClient},
	} {
		c, err := New(o)
		if c != nil || !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: got %v", name, err)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: error shows a password: %v", name, err)
		}
	}
}

func TestResourceRefusesNames(t *testing.T) {
	c, err := New(Options{URL: "http://127.0.0.1:1", Attester: attest.NewSample()})
	if err != nil {
		t.Fatal(err)
	}
	for _, uri := range []string{"", "kbs:///a/b", "file:///etc/shadow", "kbs:///a/../b", "kbs+pkcs11:///a/b/c"} {
		if _, err := c.Resource(t.Context(), uri); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%q: got %v", uri, err)
		}
	}
}

// A guest that may not attest asks nobody, and says why it does not.
func TestRefuse(t *testing.T) {
	asked := false
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked = true }))
	defer server.Close()
	c, err := New(Options{URL: server.URL, Attester: attest.Bare{}, Refuse: attest.ErrBare})
	if err != nil {
		t.Fatal(err)
	}
	_, resourceErr := c.Resource(t.Context(), "kbs:///a/b/c")
	_, _, tokenErr := c.Token(t.Context())
	_, evidenceErr := c.Evidence(t.Context(), nil)
	for name, err := range map[string]error{"resource": resourceErr, "token": tokenErr, "evidence": evidenceErr} {
		if !errors.Is(err, attest.ErrBare) || !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if asked {
		t.Error("the broker was asked")
	}
}

func TestTokenLifetime(t *testing.T) {
	token := func(claims string) string {
		return "e30." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".c2ln"
	}
	for name, tc := range map[string]struct {
		token string
		want  time.Duration
	}{
		"five minutes": {token(`{"iat":1000,"exp":1300,"more":[1]}`), 5 * time.Minute},
		"very long":    {token(`{"iat":1,"exp":9007199254740991}`), maxLifetime},
		"no end":       {token(`{"iat":1000}`), 0},
		"no start":     {token(`{"exp":1000}`), 0},
		"backwards":    {token(`{"iat":1300,"exp":1000}`), 0},
		"overflow":     {token(`{"iat":-9223372036854775807,"exp":9223372036854775807}`), 0},
		"text":         {token(`{"iat":"1","exp":"2"}`), 0},
		"two parts":    {"a.b", 0},
		"not base64":   {"a.!.c", 0},
		"not JSON":     {token(`x`), 0},
		"empty":        {"", 0},
	} {
		got, err := tokenLifetime(tc.token)
		if got != tc.want || (err == nil) != (tc.want > 0) {
			t.Errorf("%s: got %s, %v", name, got, err)
		}
	}
}

func FuzzTokenLifetime(f *testing.F) {
	f.Add("e30.eyJpYXQiOjEwMDAsImV4cCI6MTMwMH0.c2ln")
	f.Fuzz(func(t *testing.T, token string) {
		if d, err := tokenLifetime(token); err == nil && (d <= 0 || d > maxLifetime) {
			t.Errorf("%q gave %s", token, d)
		}
	})
}

// What a broker can put into headers and challenges must not confuse the client.
func TestHostileChallenge(t *testing.T) {
	for name, tc := range map[string]struct{ cookie, body string }{
		"no cookie":     {"", `{"nonce":"n","extra-params":""}`},
		"long cookie":   {strings.Repeat("x", 300), `{"nonce":"n","extra-params":""}`},
		"no nonce":      {"s", `{"extra-params":""}`},
		"long nonce":    {"s", `{"nonce":"` + strings.Repeat("n", proto.MaxNonce+1) + `","extra-params":""}`},
		"unknown hash":  {"s", `{"nonce":"n","extra-params":{"selected-hash-algorithm":"md5"}}`},
		"two nonces":    {"s", `{"nonce":"a","nonce":"b","extra-params":""}`},
		"not an object": {"s", `[]`},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != proto.PathAuth {
					t.Errorf("client went on to %s", r.URL.Path)
				}
				if tc.cookie != "" {
					w.Header().Set("Set-Cookie", proto.SessionCookie+"="+tc.cookie)
				}
				fmt.Fprint(w, tc.body)
			}))
			defer server.Close()
			c, err := New(Options{URL: server.URL, Attester: attest.NewSample()})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Resource(t.Context(), "kbs:///a/b/c"); !errors.Is(err, errdefs.ErrInternal) || !strings.Contains(err.Error(), "senseless") {
				t.Errorf("got %v", err)
			}
		})
	}
}

func FuzzValidCookie(f *testing.F) {
	f.Add("0d2a4f5e-8d3c-4d53-9a0a-1f7c2f4d0b11")
	f.Fuzz(func(t *testing.T, value string) {
		if !validCookie(value) {
			return
		}
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.AddCookie(&http.Cookie{Name: proto.SessionCookie, Value: value})
		if back, err := r.Cookie(proto.SessionCookie); err != nil || back.Value != value {
			t.Errorf("%q came back as %v, %v", value, back, err)
		}
	})
}
