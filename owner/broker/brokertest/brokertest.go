// Package brokertest runs a real broker inside a test, with a switch for each way in which a broker can fail its guests. The broker
// accepts the sample TEE, keeps its resources in a temporary directory and its audit log in memory.
package brokertest

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/coffer-project/coffer/owner/appraise"
	"github.com/coffer-project/coffer/owner/appraise/sample"
	"github.com/coffer-project/coffer/owner/appraise/snp"
	"github.com/coffer-project/coffer/owner/broker"
	"github.com/coffer-project/coffer/owner/broker/admin"
	"github.com/coffer-project/coffer/owner/broker/audit"
	"github.com/coffer-project/coffer/owner/broker/client"
	"github.com/coffer-project/coffer/owner/broker/ear"
	"github.com/coffer-project/coffer/owner/broker/keys"
	"github.com/coffer-project/coffer/owner/broker/policy"
	"github.com/coffer-project/coffer/owner/broker/reference"
	"github.com/coffer-project/coffer/owner/broker/store"
	"github.com/coffer-project/coffer/owner/broker/store/files"
	"github.com/coffer-project/coffer/proto/kbs"
)

// Options choose where and how the broker listens and what it accepts.
type Options struct {
	// Listen is host:port; empty means a free port of 127.0.0.1. Listener, when not nil, is used instead, for example one that was
	// opened in another network namespace.
	Listen   string
	Listener net.Listener
	// TLS makes the broker speak https with a new certificate for the listening address and for Names.
	TLS   bool
	Names []string
	// RefuseSample makes the broker behave as if it had been started without --allow-sample.
	RefuseSample bool
	// SNPTestRoots makes the broker believe SNP reports forged under these roots; see package snptest.
	SNPTestRoots snp.Roots
	// Devices verify additional evidence.
	Devices []broker.DeviceVerifier
	// Policy replaces the resource policy.
	Policy broker.Policy
	// Now replaces the clock.
	Now func() time.Time
	// TokenLifetime and SessionLifetime are 5 minutes when zero; MaxSessions is 1000 when zero.
	TokenLifetime, SessionLifetime time.Duration
	MaxSessions                    int
}

// Broker is a running broker.
type Broker struct {
	// URL is the base URL, with the address that the broker listens on.
	URL string
	// CACertPEM is the certificate to trust; empty for plain http.
	CACertPEM []byte
	// AdminKey may change resources.
	AdminKey ed25519.PrivateKey
	// Policies and References are what admins change over the network.
	Policies   *policy.Policies
	References *reference.Values
	// Handler is the honest broker, without switch and counters.
	Handler http.Handler

	store  store.Resources
	admins *admin.Verifier
	server *http.Server
	audits *records

	mu       sync.Mutex
	arrived  *sync.Cond // of mu, on each request
	failure  Failure
	released chan struct{} // closed when Slow requests may end
	requests map[string]int
}

// Start starts a broker that is closed when the test ends.
func Start(tb testing.TB, o Options) *Broker {
	tb.Helper()
	b := &Broker{audits: &records{}, requests: map[string]int{}, released: make(chan struct{})}
	b.arrived = sync.NewCond(&b.mu)
	b.assemble(tb, &o)
	listener := o.Listener
	if listener == nil {
		address := o.Listen
		if address == "" {
			address = "127.0.0.1:0"
		}
		var err error
		if listener, err = net.Listen("tcp", address); err != nil {
			tb.Fatalf("start test broker: %v", err)
		}
	}
	b.URL = "http://" + listener.Addr().String()
	if o.TLS {
		b.URL = "https://" + listener.Addr().String()
		var cert tls.Certificate
		cert, b.CACertPEM = newCertificate(tb, listener.Addr(), o.Names)
		listener = tls.NewListener(listener, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12})
	}
	b.server = &http.Server{Handler: http.HandlerFunc(b.serve), ReadHeaderTimeout: 10 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b.server.Serve(listener) // always ends with an error, after Close with ErrServerClosed
	}()
	tb.Cleanup(func() {
		b.Fail(FailNothing)
		b.server.Close()
		<-done
	})
	return b
}

func (b *Broker) assemble(tb testing.TB, o *Options) {
	tb.Helper()
	fatal := func(err error) {
		if err != nil {
			tb.Fatalf("start test broker: %v", err)
		}
	}
	for _, d := range []*time.Duration{&o.TokenLifetime, &o.SessionLifetime} {
		if *d == 0 {
			*d = 5 * time.Minute
		}
	}
	if o.MaxSessions == 0 {
		o.MaxSessions = 1000
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	var verifiers []appraise.Verifier
	if !o.RefuseSample {
		verifiers = append(verifiers, sample.New())
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	fatal(err)
	b.AdminKey = private
	b.admins = &admin.Verifier{Admins: []admin.Admin{{Name: "test", Key: public, Roles: []admin.Role{admin.RoleAdmin}}}}
	tokenKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	fatal(err)
	tokens, err := ear.NewIssuer(tokenKey, nil, o.Now)
	fatal(err)
	sessionKey, err := keys.Session(tokenKey)
	fatal(err)
	entries, err := files.Open(filepath.Join(tb.TempDir(), "store"))
	fatal(err)
	tb.Cleanup(func() { entries.Close() })
	b.store = store.Resources{Store: entries}
	references := reference.New(entries, o.Now)
	policies := policy.New(entries, references, !o.RefuseSample)
	b.Policies, b.References = policies, references
	if o.SNPTestRoots != nil {
		forged, err := snp.New(snp.Options{References: references, TestRoots: o.SNPTestRoots, Now: o.Now})
		fatal(err)
		verifiers = append(verifiers, forged)
	}
	if o.Policy == nil {
		o.Policy = policies
	}
	b.Handler, err = broker.New(broker.Options{
		Verifiers: verifiers, Devices: o.Devices, Policy: o.Policy, Store: b.store, Tokens: tokens, Audit: b.audits, Now: o.Now,
		Policies: policies, Appraisal: policies, References: references, SessionKey: sessionKey,
		Admins:        b.admins,
		TokenLifetime: o.TokenLifetime, SessionLifetime: o.SessionLifetime, MaxSessions: o.MaxSessions,
		RequestsPerSecond: 10000, RequestBurst: 10000,
	})
	fatal(err)
}

// Admin returns a client with AdminKey.
func (b *Broker) Admin(tb testing.TB) *client.Client {
	tb.Helper()
	c, err := client.New(client.Options{URL: b.URL, CACertPEM: b.CACertPEM, Key: b.AdminKey})
	if err != nil {
		tb.Fatalf("test broker's admin client: %v", err)
	}
	return c
}

// AdminKeyOf adds an admin with some roles, named after the first, before the broker is asked anything by it.
func (b *Broker) AdminKeyOf(tb testing.TB, roles ...admin.Role) ed25519.PrivateKey {
	tb.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		tb.Fatalf("test broker's admin: %v", err)
	}
	b.admins.Admins = append(b.admins.Admins, admin.Admin{Name: string(roles[0]), Key: public, Roles: roles})
	return private
}

// Put stores a resource directly, without the admin API. uri is kbs:///repository/type/tag.
func (b *Broker) Put(tb testing.TB, uri string, data []byte) {
	tb.Helper()
	parsed, err := kbs.ParseResourceURI(uri)
	if err != nil {
		tb.Fatalf("test broker: %v", err)
	}
	if err := b.store.Put(tb.Context(), parsed, data); err != nil {
		tb.Fatalf("test broker: %v", err)
	}
}

// Audit returns the records so far.
func (b *Broker) Audit() []audit.Record { return b.audits.all() }

// Requests returns how often an endpoint was asked: auth, attest or resource.
func (b *Broker) Requests(endpoint string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.requests[endpoint]
}

// Await waits until an endpoint was asked n times in all.
func (b *Broker) Await(endpoint string, n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.requests[endpoint] < n {
		b.arrived.Wait()
	}
}

// records is an audit log in memory.
type records struct {
	mu   sync.Mutex
	list []audit.Record
}

// Record implements broker.Recorder.
func (r *records) Record(rec audit.Record) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, rec)
	return nil
}

func (r *records) all() []audit.Record {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]audit.Record(nil), r.list...)
}
