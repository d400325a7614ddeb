package broker

import (
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

func options(t *testing.T) Options {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tokens, err := ear.NewIssuer(key, nil, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	return Options{
		Policy: fakePolicy{}, Store: &fakeStore{data: []byte("secret")}, Tokens: tokens, Audit: &fakeRecorder{},
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
	claims, err := buildClaims(kbs.TEESNP, &appraise.Result{Status: appraise.Affirming}, nil, kbs.RuntimeData{Nonce: "n", TEEPublicKey: jwk})
	if err != nil {
		t.Fatal(err)
	}
	text, err := o.Tokens.Issue(claims, time.Minute)
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
		"nothing":      {func(*Options) {}, 200},
		"audit log":    {func(o *Options) { o.Audit = &fakeRecorder{err: errors.New("disk full at /private/path")} }, 500},
		"store":        {func(o *Options) { o.Store = &fakeStore{err: errors.New("read /private/path")} }, 500},
		"policy":       {func(o *Options) { o.Policy = fakePolicy{err: errors.New("rule in /private/path")} }, 500},
		"missing":      {func(o *Options) { o.Store = &fakeStore{err: errdefs.ErrNotFound} }, 404},
		"fixed policy": {func(o *Options) { o.Policy = FixedPolicy{} }, 200},
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
	for _, word := range []string{"Policy", "Store", "Tokens", "Audit", "TokenLifetime", "SessionLifetime", "MaxSessions", "RequestsPerSecond", "RequestBurst"} {
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
	table := newSessions(2, time.Minute, func() time.Time { return now })
	begin := func() session {
		t.Helper()
		s, ok := table.begin(kbs.TEESample)
		if !ok {
			t.Fatal("no room")
		}
		return s
	}
	attest := func(s session) {
		t.Helper()
		if _, err := table.claim(s.id); err != nil {
			t.Fatal(err)
		}
		if err := table.finish(s.id, "token"); err != nil {
			t.Fatal(err)
		}
	}
	first, second := begin(), begin()
	third := begin() // takes the place of first
	if _, err := table.claim(first.id); err == nil {
		t.Error("oldest session did not make room")
	}
	attest(second)
	attest(third)
	if _, ok := table.begin(kbs.TEESample); ok {
		t.Error("an attested session made room")
	}
	if first.nonce == second.nonce || first.id == second.id || len(first.id) != 36 {
		t.Errorf("sessions are not distinct: %+v %+v", first, second)
	}
	now = now.Add(time.Minute)
	if _, ok := table.token(second.id); ok {
		t.Error("session outlived its end")
	}
	begin()
	if table.order.Len() != 1 || len(table.byID) != 1 {
		t.Errorf("%d and %d sessions left", table.order.Len(), len(table.byID))
	}
	if err := table.finish(second.id, "x"); err == nil {
		t.Error("finished an expired session")
	}
}

func TestFixedPolicy(t *testing.T) {
	submod := func(tee string, status appraise.Status) ear.Submod {
		return ear.Submod{Status: status, Evidence: map[string]json.RawMessage{tee: json.RawMessage(`{}`)}}
	}
	for name, tc := range map[string]struct {
		submods map[string]ear.Submod
		sample  bool
		want    bool
	}{
		"nothing":              {nil, true, false},
		"affirming":            {map[string]ear.Submod{"cpu0": submod("snp", appraise.Affirming)}, false, true},
		"warning":              {map[string]ear.Submod{"cpu0": submod("snp", appraise.Warning)}, true, false},
		"none":                 {map[string]ear.Submod{"cpu0": submod("snp", appraise.None)}, true, false},
		"one part bad":         {map[string]ear.Submod{"cpu0": submod("snp", appraise.Affirming), "gpu0": submod("nvidia", appraise.Contraindicated)}, true, false},
		"sample":               {map[string]ear.Submod{"cpu0": submod("sample", appraise.None)}, false, false},
		"sample allowed":       {map[string]ear.Submod{"cpu0": submod("sample", appraise.None)}, true, true},
		"sample and a device":  {map[string]ear.Submod{"cpu0": submod("sample", appraise.None), "gpu0": submod("nvidia", appraise.Affirming)}, true, false},
		"sample says affirmed": {map[string]ear.Submod{"cpu0": submod("sample", appraise.Affirming)}, false, false},
	} {
		allowed, reason, err := FixedPolicy{AllowSample: tc.sample}.Allow(t.Context(), &ear.Claims{Submods: tc.submods}, kbs.ResourceURI{})
		if allowed != tc.want || reason == "" || err != nil {
			t.Errorf("%s: got %t, %q, %v", name, allowed, reason, err)
		}
	}
}
