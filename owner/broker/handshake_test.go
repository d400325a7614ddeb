package broker_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/coffer-project/coffer/owner/broker/audit"
	"github.com/coffer-project/coffer/owner/broker/brokertest"
	"github.com/coffer-project/coffer/proto/kbs"
)

func start(t *testing.T, o brokertest.Options) *brokertest.Broker {
	t.Helper()
	b := brokertest.Start(t, o)
	b.Put(t, uri, secret)
	return b
}

// clock is a test's clock that can be moved.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func TestKeysOfGuests(t *testing.T) {
	b := start(t, brokertest.Options{})
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for name, use := range map[string]func(*guest){
		"P-256": func(*guest) {},
		"P-521": func(g *guest) { g.use(p521, &p521.PublicKey, jose.ECDH_ES_A256KW) },
		"RSA":   func(g *guest) { g.use(rsaKey, &rsaKey.PublicKey, jose.RSA_OAEP_256) },
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t, b)
			use(g)
			g.handshake()
			if got := g.open(g.get(nil)); string(got) != string(secret) {
				t.Errorf("got %q", got)
			}
		})
	}
}

func TestAuthRefuses(t *testing.T) {
	b := start(t, brokertest.Options{})
	for name, tc := range map[string]struct {
		body   string
		status int
		kind   string
	}{
		"old version":  {`{"version":"0.1.1","tee":"sample","extra-params":""}`, 401, kbs.KindAttestation},
		"new version":  {`{"version":"0.4.1","tee":"sample","extra-params":""}`, 401, kbs.KindAttestation},
		"unknown tee":  {`{"version":"0.4.0","tee":"enclave","extra-params":""}`, 401, kbs.KindAttestation},
		"other tee":    {`{"version":"0.4.0","tee":"snp","extra-params":""}`, 401, kbs.KindAttestation},
		"no tee":       {`{"version":"0.4.0"}`, 401, kbs.KindAttestation},
		"two versions": {`{"version":"0.4.0","version":"0.4.0","tee":"sample"}`, 401, kbs.KindAttestation},
		"not JSON":     {`tee=sample`, 401, kbs.KindAttestation},
		"empty":        {``, 401, kbs.KindAttestation},
		"oversize":     {`{"version":"` + strings.Repeat("x", kbs.MaxRequest) + `"}`, 413, kbs.KindPluginInternal},
	} {
		t.Run(name, func(t *testing.T) {
			w := newGuest(t, b).send(http.MethodPost, kbs.PathAuth, []byte(tc.body), nil)
			refused(t, w, tc.status, tc.kind)
			if len(w.Result().Cookies()) != 0 {
				t.Error("a refused guest got a session")
			}
		})
	}
}

func TestSampleNeedsPermission(t *testing.T) {
	b := start(t, brokertest.Options{RefuseSample: true})
	w := newGuest(t, b).send(http.MethodPost, kbs.PathAuth, []byte(`{"version":"0.4.0","tee":"sample","extra-params":""}`), nil)
	refused(t, w, 401, kbs.KindAttestation)
	if !strings.Contains(w.Body.String(), "--allow-sample") {
		t.Errorf("no hint in %s", w.Body)
	}
}

// Each row spoils one thing in a good attestation.
func TestAttestRefuses(t *testing.T) {
	b := start(t, brokertest.Options{})
	jwk := func(text string) func(*guest, *kbs.Attestation) {
		return func(g *guest, a *kbs.Attestation) {
			a.RuntimeData.TEEPublicKey = json.RawMessage(text)
			g.bind(a)
		}
	}
	public := func(key any, algorithm jose.KeyAlgorithm) func(*guest, *kbs.Attestation) {
		return func(g *guest, a *kbs.Attestation) {
			g.use(nil, key, algorithm)
			a.RuntimeData.TEEPublicKey = g.jwk
			g.bind(a)
		}
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	short := &rsa.PublicKey{N: new(big.Int).SetBit(big.NewInt(1), 383, 1), E: 65537}
	for name, spoil := range map[string]func(*guest, *kbs.Attestation){
		"nonce": func(_ *guest, a *kbs.Attestation) { a.RuntimeData.Nonce = "A" + a.RuntimeData.Nonce[1:] + "A" },
		"bound other nonce": func(g *guest, a *kbs.Attestation) {
			a.RuntimeData.Nonce = "x"
			g.bind(a)
			a.RuntimeData.Nonce = g.nonce
		},
		"no nonce": func(_ *guest, a *kbs.Attestation) { a.RuntimeData.Nonce = "" },
		"key swapped": func(g *guest, a *kbs.Attestation) {
			g.use(nil, &p256.PublicKey, jose.ECDH_ES_A256KW)
			a.RuntimeData.TEEPublicKey = g.jwk
		},
		"evidence added": func(_ *guest, a *kbs.Attestation) { a.Evidence.Additional = "{}" },
		"report data": func(_ *guest, a *kbs.Attestation) {
			a.Evidence.Primary = json.RawMessage(`{"svn":"1","report_data":"AAAA"}`)
		},
		"evidence":         func(_ *guest, a *kbs.Attestation) { a.Evidence.Primary = json.RawMessage(`"quote"`) },
		"no evidence":      func(_ *guest, a *kbs.Attestation) { a.Evidence.Primary = json.RawMessage(`null`) },
		"device evidence":  func(g *guest, a *kbs.Attestation) { a.Evidence.Additional = `{"nvidia":{}}`; g.bind(a) },
		"init-data format": func(_ *guest, a *kbs.Attestation) { a.InitData = &kbs.InitData{Format: "json", Body: "{}"} },
		"init-data":        func(_ *guest, a *kbs.Attestation) { a.InitData = &kbs.InitData{Format: "toml", Body: "version = 1"} },
		"key kind":         jwk(`{"kty":"oct","k":"AAAA","alg":"ECDH-ES+A256KW"}`),
		"key off curve":    jwk(`{"kty":"EC","crv":"P-256","alg":"ECDH-ES+A256KW","x":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE","y":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE"}`),
		"key text":         jwk(`"key"`),
		"no key":           jwk(`{}`),
		"P-384":            public(&p384.PublicKey, jose.ECDH_ES_A256KW),
		"short RSA":        public(short, jose.RSA_OAEP_256),
		"other algorithm":  public(&p256.PublicKey, jose.ECDH_ES),
		"extra key member": func(g *guest, a *kbs.Attestation) {
			a.RuntimeData.TEEPublicKey = json.RawMessage(strings.Replace(string(g.jwk), "{", `{"use":"enc",`, 1))
			g.bind(a)
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t, b)
			g.auth()
			w := g.attest(func(a *kbs.Attestation) { spoil(g, a) })
			refused(t, w, 401, kbs.KindAttestation)
			// The attempt has ended the session: neither a key nor a second attempt comes out of it.
			refused(t, g.get(nil), 401, kbs.KindTokenNotFound)
			refused(t, g.attest(nil), 401, kbs.KindAttestation)
		})
	}
}

func TestAttestRefusesBodies(t *testing.T) {
	b := start(t, brokertest.Options{})
	for name, tc := range map[string]struct {
		body   string
		status int
		kind   string
	}{
		"not JSON": {"x", 401, kbs.KindAttestation},
		"empty":    {"", 401, kbs.KindAttestation},
		"oversize": {strings.Repeat(" ", kbs.MaxAttestation+1), 413, kbs.KindPluginInternal},
	} {
		g := newGuest(t, b)
		g.auth()
		t.Run(name, func(t *testing.T) {
			refused(t, g.send(http.MethodPost, kbs.PathAttest, []byte(tc.body), nil), tc.status, tc.kind)
		})
	}
}

func TestSessionUse(t *testing.T) {
	c := newClock()
	b := start(t, brokertest.Options{Now: c.Now})
	t.Run("none", func(t *testing.T) {
		g := newGuest(t, b)
		refused(t, g.attest(nil), 401, kbs.KindAttestation)
		refused(t, g.get(nil), 401, kbs.KindTokenNotFound)
	})
	t.Run("invented", func(t *testing.T) {
		g := newGuest(t, b)
		g.cookie = "0d2a4f5e-8d3c-4d53-9a0a-1f7c2f4d0b11"
		refused(t, g.attest(nil), 401, kbs.KindAttestation)
		refused(t, g.get(nil), 401, kbs.KindTokenNotFound)
	})
	t.Run("not attested", func(t *testing.T) {
		g := newGuest(t, b)
		g.auth()
		refused(t, g.get(nil), 401, kbs.KindTokenNotFound)
	})
	t.Run("replayed", func(t *testing.T) {
		g := newGuest(t, b)
		g.auth()
		body := g.attestation(nil)
		if w := g.send(http.MethodPost, kbs.PathAttest, body, nil); w.Code != http.StatusOK {
			t.Fatalf("status %d", w.Code)
		}
		refused(t, g.send(http.MethodPost, kbs.PathAttest, body, nil), 401, kbs.KindAttestation)
		g.open(g.get(nil)) // the replay did not hurt the session
	})
	t.Run("evidence of another session", func(t *testing.T) {
		victim := newGuest(t, b)
		victim.auth()
		body := victim.attestation(nil)
		thief := newGuest(t, b)
		thief.auth()
		refused(t, thief.send(http.MethodPost, kbs.PathAttest, body, nil), 401, kbs.KindAttestation)
	})
	t.Run("too late to attest", func(t *testing.T) {
		g := newGuest(t, b)
		g.auth()
		c.Add(5 * time.Minute)
		refused(t, g.attest(nil), 401, kbs.KindAttestation)
	})
	t.Run("too late to get", func(t *testing.T) {
		g := newGuest(t, b)
		g.handshake()
		c.Add(5*time.Minute - time.Second)
		g.open(g.get(nil))
		c.Add(time.Second)
		refused(t, g.get(nil), 401, kbs.KindTokenNotFound)
	})
}

// Two attestations race for one nonce; one wins.
func TestAttestRace(t *testing.T) {
	b := start(t, brokertest.Options{})
	g := newGuest(t, b)
	g.auth()
	body := g.attestation(nil)
	var group sync.WaitGroup
	var mu sync.Mutex
	codes := map[int]int{}
	for range 8 {
		group.Go(func() {
			r := httptest.NewRequest(http.MethodPost, kbs.PathAttest, strings.NewReader(string(body)))
			r.AddCookie(&http.Cookie{Name: kbs.SessionCookie, Value: g.cookie})
			w := httptest.NewRecorder()
			b.Handler.ServeHTTP(w, r)
			mu.Lock()
			defer mu.Unlock()
			codes[w.Code]++
		})
	}
	group.Wait()
	if codes[200] != 1 || codes[401] != 7 {
		t.Errorf("status codes %v", codes)
	}
}

func TestTokenUse(t *testing.T) {
	c := newClock()
	b := start(t, brokertest.Options{Now: c.Now})
	g := newGuest(t, b)
	token := g.handshake()
	g.cookie = ""
	bearer := func(token string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token) }
	}
	if got := g.open(g.get(bearer(token))); string(got) != string(secret) {
		t.Errorf("got %q", got)
	}
	stranger := newGuest(t, start(t, brokertest.Options{Now: c.Now}))
	foreign := stranger.handshake()
	parts, foreignParts := strings.Split(token, "."), strings.Split(foreign, ".")
	for name, token := range map[string]string{
		"of another broker": foreign,
		"spliced":           parts[0] + "." + foreignParts[1] + "." + parts[2],
		"unsigned":          "eyJhbGciOiJub25lIn0." + parts[1] + ".",
		"garbage":           "x",
		"huge":              strings.Repeat("a", 300<<10),
	} {
		t.Run(name, func(t *testing.T) {
			refused(t, g.get(bearer(token)), 401, kbs.KindTokenVerifier)
		})
	}
	t.Run("expired", func(t *testing.T) {
		c.Add(5 * time.Minute)
		refused(t, g.get(bearer(token)), 401, kbs.KindTokenVerifier)
	})
}

func TestPolicyDenies(t *testing.T) {
	b := start(t, brokertest.Options{}) // the verifier accepts sample, the policy does not
	if err := b.Policies.SetResource(t.Context(), "package policy\nallow := false"); err != nil {
		t.Fatal(err)
	}
	g := newGuest(t, b)
	g.handshake()
	refused(t, g.get(nil), 401, kbs.KindPolicyDeny)
	// Whether the resource exists is not told to who may not have it.
	refused(t, g.send(http.MethodGet, kbs.PathResource+"/default/key/none", nil, nil), 401, kbs.KindPolicyDeny)
	last := b.Audit()[len(b.Audit())-1]
	if last.Event != audit.EventRelease || last.Decision != audit.Refused || last.Resource != "kbs:///default/key/none" || last.Reason == "" || last.ClaimsDigest == "" {
		t.Errorf("audit record %+v", last)
	}
}

func TestPaths(t *testing.T) {
	b := start(t, brokertest.Options{})
	g := newGuest(t, b)
	g.handshake()
	for path, kind := range map[string]string{
		kbs.PathResource + "/default/key/none":     kbs.KindNotFound,
		kbs.PathResource + "/default/key":          kbs.KindInvalidPath,
		kbs.PathResource + "/default/key/1/2":      kbs.KindInvalidPath,
		kbs.PathResource + "/default/key/%2e%2e":   kbs.KindInvalidPath,
		kbs.PathResource + "/default/key/.hidden":  kbs.KindInvalidPath,
		kbs.PathResource + "/default/key/a%2fb":    kbs.KindInvalidPath,
		kbs.PathResource + "/default/key/1?x=1":    kbs.KindInvalidPath,
		kbs.PathResource + "/default/key/a%00b":    kbs.KindInvalidPath,
		"/kbs/v0/pkcs11/a/b/c":                     kbs.KindInvalidPath,
		"/":                                        kbs.KindInvalidPath,
		"/kbs/v1/resource/default/key/1":           kbs.KindInvalidPath,
		kbs.PathResource + "/default/key/1%0d%0aX": kbs.KindInvalidPath,
	} {
		t.Run(path, func(t *testing.T) {
			refused(t, g.send(http.MethodGet, path, nil, nil), 404, kind)
		})
	}
	if w := g.send(http.MethodGet, kbs.PathHealth, nil, nil); w.Code != http.StatusOK {
		t.Errorf("health: status %d", w.Code)
	}
}

func FuzzAttest(f *testing.F) {
	b := brokertest.Start(f, brokertest.Options{})
	f.Add([]byte(`{"runtime-data":{"nonce":"n","tee-pubkey":{"kty":"EC","crv":"P-256","alg":"ECDH-ES+A256KW","x":"eA","y":"eQ"}},"tee-evidence":{"primary_evidence":{"svn":"1","report_data":"AA=="},"additional_evidence":""}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		g := &guest{t: t, broker: b.Handler}
		g.auth()
		if w := g.send(http.MethodPost, kbs.PathAttest, body, nil); w.Code < 400 || w.Code >= 500 {
			t.Errorf("status %d for %q", w.Code, body)
		}
	})
}
