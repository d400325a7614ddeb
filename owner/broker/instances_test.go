package broker_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"io"
	mathrand "math/rand/v2"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/go-jose/go-jose/v4"

	"github.com/coffer-project/coffer/owner/appraise"
	"github.com/coffer-project/coffer/owner/appraise/sample"
	"github.com/coffer-project/coffer/owner/broker"
	"github.com/coffer-project/coffer/owner/broker/audit"
	"github.com/coffer-project/coffer/owner/broker/ear"
	"github.com/coffer-project/coffer/owner/broker/keys"
	"github.com/coffer-project/coffer/owner/broker/policy"
	"github.com/coffer-project/coffer/owner/broker/reference"
	"github.com/coffer-project/coffer/owner/broker/store"
	"github.com/coffer-project/coffer/owner/broker/store/files"
	"github.com/coffer-project/coffer/proto/kbs"
)

// shared is what brokers behind one address share: the store's directory, the master key and the token key.
type shared struct {
	dir   string
	token *ecdsa.PrivateKey
}

func newShared(t *testing.T) shared {
	t.Helper()
	token, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return shared{dir: filepath.Join(t.TempDir(), "store"), token: token}
}

// discard is an audit log that nobody reads.
type discard struct{}

func (discard) Record(audit.Record) error { return nil }

// flaky is a store that can be taken down: until further notice, or by chance, for one to ten calls each time.
type flaky struct {
	store.Store
	mu     sync.Mutex
	down   bool
	chance *mathrand.Rand // nil for none
	outage int            // calls that are still to fail
}

func (f *flaky) set(down bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = down
}

func (f *flaky) fault() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.chance != nil && f.outage == 0 && f.chance.IntN(20) == 0 {
		f.outage = 1 + f.chance.IntN(10)
	}
	if f.outage > 0 {
		f.outage--
		return errdefs.ErrUnavailable
	}
	if f.down {
		return errdefs.ErrUnavailable
	}
	return nil
}

func (f *flaky) Get(ctx context.Context, name string) ([]byte, error) {
	if err := f.fault(); err != nil {
		return nil, err
	}
	return f.Store.Get(ctx, name)
}

func (f *flaky) Put(ctx context.Context, name string, data []byte) error {
	if err := f.fault(); err != nil {
		return err
	}
	return f.Store.Put(ctx, name, data)
}

func (f *flaky) Create(ctx context.Context, name string, data []byte) error {
	if err := f.fault(); err != nil {
		return err
	}
	return f.Store.Create(ctx, name, data)
}

// instance starts one broker, with everything but shared of its own, and returns its store too.
func (s shared) instance(t *testing.T) (*broker.Broker, *flaky) {
	t.Helper()
	fatal := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	dir, err := files.Open(s.dir)
	fatal(err)
	t.Cleanup(func() { dir.Close() })
	backend := &flaky{Store: dir}
	master, err := store.NewMasterKey(bytes.Repeat([]byte("m"), 32))
	fatal(err)
	sealed, err := store.Sealed(t.Context(), backend, master)
	fatal(err)
	tokens, err := ear.NewIssuer(s.token, nil, time.Now)
	fatal(err)
	sessionKey, err := keys.Session(s.token)
	fatal(err)
	references := reference.New(sealed, time.Now)
	policies := policy.New(sealed, references, true)
	b, err := broker.New(broker.Options{
		Verifiers: []appraise.Verifier{sample.New()}, Policy: policies, Policies: policies, Appraisal: policies, References: references,
		Store: store.Resources{Store: sealed}, Sessions: store.Sessions{Store: sealed}, Tokens: tokens, SessionKey: sessionKey, Audit: discard{},
		TokenLifetime: 5 * time.Minute, SessionLifetime: 5 * time.Minute, MaxSessions: 1000, RequestsPerSecond: 1e6, RequestBurst: 1e6,
	})
	fatal(err)
	return b, backend
}

// guestOf returns a guest that has not spoken yet.
func guestOf(t *testing.T, b http.Handler) *guest {
	t.Helper()
	g := &guest{t: t, broker: b}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	g.use(private, &private.PublicKey, jose.ECDH_ES_A256KW)
	return g
}

// Each step of a handshake goes to another broker.
func TestInstances(t *testing.T) {
	s := newShared(t)
	first, _ := s.instance(t)
	second, backend := s.instance(t)
	third, _ := s.instance(t)
	if err := first.Store.Put(t.Context(), kbs.ResourceURI{Repository: "default", Type: "key", Tag: "1"}, secret); err != nil {
		t.Fatal(err)
	}
	g := guestOf(t, first)
	g.auth()
	body := g.attestation(nil)
	g.broker = second
	if w := g.send(http.MethodPost, kbs.PathAttest, body, nil); w.Code != http.StatusOK {
		t.Fatalf("attest at another broker: status %d %s", w.Code, w.Body)
	}
	g.broker = third
	if got := g.open(g.get(nil)); !bytes.Equal(got, secret) {
		t.Errorf("got %q", got)
	}
	t.Run("nonce is spent everywhere", func(t *testing.T) {
		for _, b := range []*broker.Broker{first, third} {
			g.broker = b
			refused(t, g.send(http.MethodPost, kbs.PathAttest, body, nil), 401, kbs.KindAttestation)
		}
		g.broker = second
		g.open(g.get(nil)) // the replay did not hurt the session
	})
	t.Run("policy of one holds at all", func(t *testing.T) {
		if err := second.Policies.SetResource(t.Context(), "package policy\nallow := false"); err != nil {
			t.Fatal(err)
		}
		g.broker = first
		refused(t, g.get(nil), 401, kbs.KindPolicyDeny)
		if err := third.Policies.ResetResource(t.Context()); err != nil {
			t.Fatal(err)
		}
		g.open(g.get(nil))
	})
	t.Run("store down", func(t *testing.T) {
		late := guestOf(t, second)
		late.auth()
		backend.set(true)
		if w := late.attest(nil); w.Code != http.StatusInternalServerError {
			t.Errorf("attest: status %d %s", w.Code, w.Body)
		}
		if w := late.send(http.MethodGet, kbs.PathReady, nil, nil); w.Code != http.StatusServiceUnavailable {
			t.Errorf("ready: status %d %s", w.Code, w.Body)
		}
		backend.set(false)
		if w := late.send(http.MethodGet, kbs.PathReady, nil, nil); w.Code != http.StatusOK {
			t.Errorf("ready: status %d %s", w.Code, w.Body)
		}
		late.handshake()
		late.open(late.get(nil))
	})
	t.Run("stranger", func(t *testing.T) {
		other, _ := newShared(t).instance(t)
		g := guestOf(t, other)
		g.auth()
		g.broker = first
		refused(t, g.attest(nil), 401, kbs.KindAttestation)
	})
}

// Guests that leave in the middle and a store that comes and goes: every guest that stays gets its key in the end, no stored resource is
// lost, and nothing is released without the store's policy.
func TestSoak(t *testing.T) {
	level := log.GetLevel()
	if err := log.SetLevel("fatal"); err != nil { // hundreds of faults are wanted here
		t.Fatal(err)
	}
	defer log.SetLevel(level.String())
	s := newShared(t)
	first, firstStore := s.instance(t)
	second, secondStore := s.instance(t)
	brokers := []*broker.Broker{first, second}
	if err := first.Store.Put(t.Context(), kbs.ResourceURI{Repository: "default", Type: "key", Tag: "1"}, secret); err != nil {
		t.Fatal(err)
	}
	rounds := 40
	if testing.Short() {
		rounds = 10
	}
	firstStore.chance, secondStore.chance = mathrand.New(mathrand.NewPCG(1, 1)), mathrand.New(mathrand.NewPCG(2, 2))
	var guests sync.WaitGroup
	stored := make([]kbs.ResourceURI, 0, rounds)
	var mu sync.Mutex
	for worker := range 4 {
		guests.Go(func() {
			for round := range rounds {
				switch (round + worker) % 3 {
				case 0:
					leave(t, brokers[round%2], round)
				case 1:
					uri := kbs.ResourceURI{Repository: "soak", Type: string(rune('a' + worker)), Tag: time.Duration(round).String()}
					if err := brokers[round%2].Store.Put(t.Context(), uri, secret); err == nil {
						mu.Lock()
						stored = append(stored, uri)
						mu.Unlock()
					}
				default:
					stay(t, brokers, round)
				}
			}
		})
	}
	guests.Wait()
	for _, backend := range []*flaky{firstStore, secondStore} {
		backend.chance, backend.outage = nil, 0
	}
	for _, uri := range stored {
		if got, err := second.Store.Get(t.Context(), uri); err != nil || !bytes.Equal(got, secret) {
			t.Errorf("resource %s was acknowledged and is lost: %q, %v", uri, got, err)
		}
	}
	if len(stored) == 0 {
		t.Error("no resource could be stored at all")
	}
}

// leave begins a handshake and goes away at one of its steps, in the middle of a body or before the answer.
func leave(t *testing.T, b *broker.Broker, round int) {
	t.Helper()
	g := guestOf(t, b)
	g.auth()
	body := g.attestation(nil)
	switch round % 3 {
	case 0: // before it attests
	case 1:
		half := io.MultiReader(bytes.NewReader(body[:len(body)/2]), iotest.ErrReader(io.ErrUnexpectedEOF))
		if w := g.send(http.MethodPost, kbs.PathAttest, nil, func(r *http.Request) { r.Body = io.NopCloser(half) }); w.Code != http.StatusBadRequest {
			t.Errorf("half of an attestation: status %d %s", w.Code, w.Body)
		}
	default:
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		g.send(http.MethodPost, kbs.PathAttest, body, func(r *http.Request) { *r = *r.WithContext(ctx) })
	}
}

// stay tries until it has its key, as guests do, now at the one broker, now at the other.
func stay(t *testing.T, brokers []*broker.Broker, round int) {
	t.Helper()
	for try := range 1000 {
		g := guestOf(t, brokers[(round+try)%2])
		g.auth()
		w := g.attest(nil)
		if w.Code == http.StatusInternalServerError {
			continue
		}
		if w.Code != http.StatusOK {
			t.Errorf("attest: status %d %s", w.Code, w.Body)
			return
		}
		g.broker = brokers[(round+try+1)%2]
		w = g.get(nil)
		if w.Code == http.StatusInternalServerError {
			continue
		}
		if got := g.open(w); !bytes.Equal(got, secret) {
			t.Errorf("got %q", got)
		}
		return
	}
	t.Error("a guest never got its key")
}
