package broker

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/go-jose/go-jose/v4"

	"github.com/coffer-project/coffer/owner/appraise"
	"github.com/coffer-project/coffer/owner/broker/audit"
	"github.com/coffer-project/coffer/owner/broker/ear"
	"github.com/coffer-project/coffer/owner/broker/policy"
	"github.com/coffer-project/coffer/owner/broker/reference"
	"github.com/coffer-project/coffer/proto/kbs"
)

type fakeStore struct {
	Store
	data []byte
	err  error
}

func (s *fakeStore) Get(context.Context, kbs.ResourceURI) ([]byte, error) { return s.data, s.err }

type fakeRecorder struct{ err error }

func (r *fakeRecorder) Record(audit.Record) error { return r.err }

type fakePolicy struct{ err error }

func (p fakePolicy) Allow(context.Context, *ear.Claims, kbs.ResourceURI) (bool, string, error) {
	return true, "allowed by test", p.err
}

func options(tb testing.TB) Options {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	tokens, err := ear.NewIssuer(key, nil, time.Now)
	if err != nil {
		tb.Fatal(err)
	}
	return Options{
		Policy: fakePolicy{}, Store: &fakeStore{data: []byte("secret")}, Tokens: tokens, Audit: &fakeRecorder{},
		Policies: &policy.Policies{}, References: &reference.Values{}, SessionKey: make([]byte, SessionKeySize),
		TokenLifetime: time.Minute, SessionLifetime: time.Minute, MaxSessions: 2, RequestsPerSecond: 1000, RequestBurst: 1000,
	}
}

// token returns one that vouches for a new guest key.
func token(t *testing.T, o Options) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	jwk, err := jose.JSONWebKey{Key: &key.PublicKey, Algorithm: string(jose.ECDH_ES_A256KW)}.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	parts := []part{{class: ear.ClassCPU, name: string(kbs.TEESNP), result: &appraise.Result{Status: appraise.Affirming}}}
	claims, err := buildClaims(parts, kbs.RuntimeData{Nonce: "n", TEEPublicKey: jwk})
	if err != nil {
		t.Fatal(err)
	}
	text, _, err := o.Tokens.Issue(claims, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// Whatever breaks, nothing is released, and the guest learns no more than that.
func TestFailsClosed(t *testing.T) {
	for name, tc := range map[string]struct {
		edit   func(*Options)
		status int
	}{
		"nothing":   {func(*Options) {}, 200},
		"audit log": {func(o *Options) { o.Audit = &fakeRecorder{err: errors.New("disk full at /private/path")} }, 500},
		"store":     {func(o *Options) { o.Store = &fakeStore{err: errors.New("read /private/path")} }, 500},
		"policy":    {func(o *Options) { o.Policy = fakePolicy{err: errors.New("rule in /private/path")} }, 500},
		"missing":   {func(o *Options) { o.Store = &fakeStore{err: errdefs.ErrNotFound} }, 404},
	} {
		t.Run(name, func(t *testing.T) {
			o := options(t)
			tc.edit(&o)
			b, err := New(o)
			if err != nil {
				t.Fatal(err)
			}
			r := httptest.NewRequest(http.MethodGet, kbs.PathResource+"/a/b/c", nil)
			r.Header.Set("Authorization", "Bearer "+token(t, o))
			w := httptest.NewRecorder()
			b.ServeHTTP(w, r)
			if w.Code != tc.status || strings.Contains(w.Body.String(), "/private/path") || strings.Contains(w.Body.String(), "secret") {
				t.Errorf("got status %d %s", w.Code, w.Body)
			}
			if isJWE := strings.Contains(w.Body.String(), "ciphertext"); isJWE != (tc.status == 200) {
				t.Errorf("sealed resource in the answer: %t", isJWE)
			}
		})
	}
}

func TestNewRefuses(t *testing.T) {
	_, err := New(Options{})
	if !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Fatalf("got %v", err)
	}
	for _, word := range []string{"Policy", "Policies", "References", "SessionKey", "Store", "Tokens", "Audit", "TokenLifetime", "SessionLifetime", "MaxSessions", "RequestsPerSecond", "RequestBurst"} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%s is not named in %v", word, err)
		}
	}
}

func TestNoAdmins(t *testing.T) {
	b, err := New(options(t))
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequest(http.MethodPost, kbs.PathResource+"/a/b/c", strings.NewReader("x"))
	r.Header.Set("Authorization", "Bearer x")
	w := httptest.NewRecorder()
	b.ServeHTTP(w, r)
	if w.Code != 401 || !strings.Contains(w.Body.String(), "no admin key") {
		t.Errorf("got status %d %s", w.Code, w.Body)
	}
}

func TestRateLimit(t *testing.T) {
	now := time.Unix(1000, 0)
	o := options(t)
	o.RequestsPerSecond, o.RequestBurst, o.Now = 1, 2, func() time.Time { return now }
	b, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ask := func(peer, path string) int {
		r := httptest.NewRequest(http.MethodGet, path, nil)
		r.RemoteAddr = peer
		w := httptest.NewRecorder()
		b.ServeHTTP(w, r)
		return w.Code
	}
	const path = kbs.PathResource + "/a/b/c"
	for i, want := range []int{401, 401, 429} {
		if got := ask("10.0.0.1:5", path); got != want {
			t.Errorf("request %d: status %d, want %d", i+1, got, want)
		}
	}
	if got := ask("10.0.0.1:6", path); got != 429 {
		t.Errorf("another port of the same peer: status %d", got)
	}
	if got := ask("10.0.0.2:5", path); got != 401 {
		t.Errorf("another peer: status %d", got)
	}
	if got := ask("10.0.0.1:5", kbs.PathHealth); got != 200 {
		t.Errorf("health: status %d", got)
	}
	now = now.Add(time.Second)
	for i, want := range []int{401, 429} {
		if got := ask("10.0.0.1:5", path); got != want {
			t.Errorf("a second later, request %d: status %d, want %d", i+1, got, want)
		}
	}
}

func TestLimiterForgets(t *testing.T) {
	now := time.Unix(1000, 0)
	l := newLimiter(1, 1, func() time.Time { return now })
	for i := range maxPeers + 10 {
		if !l.allow(string(rune(i))+"peer") || len(l.buckets) > maxPeers {
			t.Fatalf("peer %d: %d buckets", i, len(l.buckets))
		}
	}
	now = now.Add(time.Minute)
	for i := range maxPeers {
		l.allow(string(rune(i)) + "later")
	}
	if len(l.buckets) > maxPeers {
		t.Errorf("%d buckets", len(l.buckets))
	}
}

func TestSessionsAreBounded(t *testing.T) {
	now := time.Unix(1000, 0)
	table, err := newSessions(make([]byte, SessionKeySize), 2, time.Minute, func() time.Time { return now }, nil)
	if err != nil {
		t.Fatal(err)
	}
	attest := func() string {
		t.Helper()
		_, cookie := table.begin(kbs.TEESample)
		s, err := table.claim(cookie)
		if err != nil {
			t.Fatal(err)
		}
		if err := table.finish(t.Context(), s, "token"); err != nil {
			t.Fatal(err)
		}
		return cookie
	}
	for range 100 {
		table.begin(kbs.TEESNP) // costs nothing
	}
	if len(table.byID) != 0 {
		t.Errorf("%d sessions are kept for challenges", len(table.byID))
	}
	first, second, third := attest(), attest(), attest()
	for cookie, want := range map[string]string{first: "", second: "token", third: "token"} {
		if got, err := table.token(t.Context(), cookie); got != want || (want == "") != errdefs.IsNotFound(err) {
			t.Errorf("got %q, %v", got, err)
		}
	}
	now = now.Add(time.Minute)
	if _, err := table.token(t.Context(), second); !errdefs.IsNotFound(err) {
		t.Error("session outlived its end")
	}
	attest()
	if table.order.Len() != 1 || len(table.byID) != 1 {
		t.Errorf("%d and %d sessions left", table.order.Len(), len(table.byID))
	}
	if _, err := newSessions([]byte("short"), 2, time.Minute, time.Now, nil); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("short key: %v", err)
	}
}

func TestCookies(t *testing.T) {
	now := time.Unix(1000, 0)
	open := func(fill byte) *sessions {
		table, err := newSessions(bytes.Repeat([]byte{fill}, SessionKeySize), 2, time.Minute, func() time.Time { return now }, nil)
		if err != nil {
			t.Fatal(err)
		}
		return table
	}
	table := open(1)
	want, cookie := table.begin(kbs.TEESNP)
	other, _ := table.begin(kbs.TEESNP)
	if want.id == other.id || want.nonce == other.nonce || len(want.nonce) != 44 {
		t.Errorf("sessions are not distinct: %+v %+v", want, other)
	}
	// Guests keep cookies of at most 256 characters.
	if _, long := table.begin(kbs.TEEAzSNPvTPM); len(long) > 256 {
		t.Errorf("cookie of %d characters", len(long))
	}
	if got, ok := open(1).open(cookie); !ok || got != want {
		t.Errorf("another broker with the key read %+v, %t", got, ok)
	}
	if _, ok := open(2).open(cookie); ok {
		t.Error("a broker with another key accepted it")
	}
	for i := range cookie {
		changed := []byte(cookie)
		changed[i] = "AB"[map[bool]int{true: 1, false: 0}[changed[i] == 'A']]
		if got, ok := table.open(string(changed)); ok && got != want {
			t.Errorf("accepted with character %d changed", i)
		}
	}
	for _, text := range []string{"", "x", cookie[:40], cookie + "AAAA", strings.Repeat("A", 10_000), "0d2a4f5e-8d3c-4d53-9a0a-1f7c2f4d0b11"} {
		if _, ok := table.open(text); ok {
			t.Errorf("accepted %q", text)
		}
	}
}

func FuzzCookie(f *testing.F) {
	table, err := newSessions(make([]byte, SessionKeySize), 2, time.Minute, time.Now, nil)
	if err != nil {
		f.Fatal(err)
	}
	foreign, err := newSessions(bytes.Repeat([]byte{1}, SessionKeySize), 2, time.Minute, time.Now, nil)
	if err != nil {
		f.Fatal(err)
	}
	_, cookie := foreign.begin(kbs.TEESample)
	f.Add(cookie)
	f.Fuzz(func(t *testing.T, cookie string) {
		if _, ok := table.open(cookie); ok {
			t.Errorf("accepted %q", cookie)
		}
	})
}

func TestPolicyData(t *testing.T) {
	for name, tc := range map[string]struct{ policy, want string }{
		"genpolicy": {"package agent_policy\npolicy_data := {\n  \"containers\": []\n}\n", `{
  "containers": []
}`},
		"none":        {"package agent_policy\n", ""},
		"within line": {"# policy_data := {}", ""},
		"no object":   {"\npolicy_data := [1]", ""},
		"cut":         {"\npolicy_data := {", ""},
		"too long":    {"\npolicy_data := {\"a\":\"" + strings.Repeat("x", maxPolicyData) + "\"}", ""},
	} {
		if got := policyData(tc.policy); string(got) != tc.want {
			t.Errorf("%s: got %.100s", name, got)
		}
	}
}

// Whatever key a guest sends: it is refused, or it can be sealed for.
func FuzzTEEKey(f *testing.F) {
	f.Add([]byte(`{"kty":"EC","crv":"P-256","alg":"ECDH-ES+A256KW","x":"kKvcxRx4vYkmT3EUAwYFcPDXjV0pSKWBmEHnPyWYmtE","y":"uaLH26f3ZCCSkrYVwlSFZh-cbQ2KvBAIbFEhCW2mDEM"}`))
	f.Add([]byte(`{"kty":"RSA","alg":"RSA-OAEP-256","n":"AQAB","e":"AQAB"}`))
	f.Add([]byte(`{"kty":"oct","k":"AA","alg":"dir"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		key, err := parseTEEKey(raw)
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("class of %v", err)
			}
			return
		}
		if sealed, err := key.seal([]byte("secret")); err == nil && bytes.Contains(sealed, []byte("secret")) {
			t.Errorf("not sealed: %s", sealed)
		}
	})
}

// The documents that guests send besides evidence must be refused as the guest's fault, or make claims that fit into a token.
func FuzzDocuments(f *testing.F) {
	b, err := New(options(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(`{"version":"0.4.0","tee":"snp","extra-params":""}`), "version = \"0.1.0\"\nalgorithm = \"sha384\"\n[data]\n\"cdh.toml\" = \"a = 1\"\n", `{"nvidia":{}}`)
	f.Fuzz(func(t *testing.T, request []byte, measured, additional string) {
		guilty := func(err error) {
			var refused *fault
			if err != nil && (!errors.As(err, &refused) || refused.status != http.StatusUnauthorized) {
				t.Errorf("not the guest's fault: %v", err)
			}
		}
		_, err := b.checkRequest(request)
		guilty(err)
		runtime := kbs.RuntimeData{Nonce: "n", TEEPublicKey: json.RawMessage(`{}`)}
		_, err = b.verifyDevices(t.Context(), &kbs.Attestation{RuntimeData: runtime, Evidence: kbs.CompositeEvidence{Additional: additional}})
		guilty(err)
		document, _, err := readInitData(&kbs.InitData{Format: kbs.InitDataTOML, Body: measured})
		if err != nil {
			return
		}
		p := part{class: ear.ClassCPU, name: "snp", result: &appraise.Result{InitData: "x"}, measured: document}
		claims, err := buildClaims([]part{p}, runtime)
		if err != nil {
			t.Errorf("%q: %v", measured, err)
		}
		if _, err := recordedClaims(&claims); err != nil {
			t.Errorf("%q: %v", measured, err)
		}
	})
}
