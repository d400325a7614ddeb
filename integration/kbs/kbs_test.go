// Package kbs tests the guest's key broker client against the real broker, over the network.
package kbs

import (
	"bytes"
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/guestpull/attest"
	guestkbs "github.com/coffer-project/coffer/guestpull/kbs"
	"github.com/coffer-project/coffer/owner/broker/audit"
	"github.com/coffer-project/coffer/owner/broker/brokertest"
)

const uri = "kbs:///default/key/1"

var key = bytes.Repeat([]byte("k"), 32)

const measured = `version = "0.1.0"
algorithm = "sha384"
[data]
"cdh.toml" = '''
[kbc]
name = "cc_kbc"
url = "http://kbs"
'''
"policy.rego" = "package agent_policy"
`

func start(t *testing.T, o brokertest.Options) *brokertest.Broker {
	t.Helper()
	b := brokertest.Start(t, o)
	b.Put(t, uri, key)
	return b
}

func newClient(t *testing.T, b *brokertest.Broker, edit func(*guestkbs.Options)) *guestkbs.Client {
	t.Helper()
	o := guestkbs.Options{URL: b.URL, CACertPEM: b.CACertPEM, Attester: attest.NewSample(), Backoff: time.Millisecond}
	if edit != nil {
		edit(&o)
	}
	c, err := guestkbs.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestRelease(t *testing.T) {
	for name, o := range map[string]brokertest.Options{"http": {}, "https": {TLS: true}} {
		t.Run(name, func(t *testing.T) {
			b := start(t, o)
			b.Put(t, "kbs:///default/key/2", []byte("two"))
			c := newClient(t, b, func(o *guestkbs.Options) { o.InitData = []byte(measured) })
			var group sync.WaitGroup
			for range 8 {
				group.Go(func() {
					if got, err := c.Resource(t.Context(), uri); err != nil || !bytes.Equal(got, key) {
						t.Errorf("got %d bytes, %v", len(got), err)
					}
					// The address inside a URI is only a hint.
					if got, err := c.Resource(t.Context(), "kbs://elsewhere:1/default/key/2"); err != nil || string(got) != "two" {
						t.Errorf("got %q, %v", got, err)
					}
				})
			}
			group.Wait()
			if a, r := b.Requests("attest"), b.Requests("resource"); a != 1 || r != 16 {
				t.Errorf("%d attestations and %d resource requests, want 1 and 16", a, r)
			}
			if tm := c.Timings(); tm.Handshakes != 1 || tm.Fetches != 16 || tm.Attest <= 0 || tm.Fetch <= 0 {
				t.Errorf("timings %+v", tm)
			}
			checkAudit(t, b)
		})
	}
}

func checkAudit(t *testing.T, b *brokertest.Broker) {
	t.Helper()
	var attested, released []audit.Record
	for _, r := range b.Audit() {
		switch r.Event {
		case audit.EventAttest:
			attested = append(attested, r)
		case audit.EventRelease:
			released = append(released, r)
		}
		if strings.Contains(string(r.Claims)+r.Reason, string(key)) {
			t.Error("audit log shows a key")
		}
	}
	if len(attested) != 1 || len(released) != 16 {
		t.Fatalf("audit log: %+v", b.Audit())
	}
	for _, r := range released {
		if r.Decision != audit.Allowed || r.TEE != "sample" || r.ClaimsDigest != attested[0].ClaimsDigest || r.Session != attested[0].Session || r.Resource == "" || r.Remote == "" {
			t.Errorf("release record %+v", r)
		}
	}
	for _, word := range []string{`"ear.status":"none"`, `"init_data_claims"`, `"cc_kbc"`, `"tee-pubkey"`} {
		if !strings.Contains(string(attested[0].Claims), word) {
			t.Errorf("%s is not in the claims %s", word, attested[0].Claims)
		}
	}
}

func TestFailures(t *testing.T) {
	for name, tc := range map[string]struct {
		failure   brokertest.Failure
		want      error
		words     []string
		auths     int // expected number of requests
		resources int
	}{
		"refused at auth":   {brokertest.RefuseAuth, errdefs.ErrPermissionDenied, []string{"refused authentication", "tee sample", "refused by test"}, 1, 0},
		"refused at attest": {brokertest.RefuseAttest, errdefs.ErrPermissionDenied, []string{"refused attestation", "measurements"}, 1, 0},
		"policy":            {brokertest.RefuseResource, errdefs.ErrPermissionDenied, []string{"refused resource " + uri, "policy denied", "resource policy"}, 1, 1},
		"forgets":           {brokertest.ForgetSessions, errdefs.ErrPermissionDenied, []string{uri, "who are you?"}, 2, 2},
		"no such key":       {brokertest.NoSuchResource, errdefs.ErrNotFound, []string{"has no resource " + uri, "cofferctl kbs resource put"}, 1, 1},
		"garbage":           {brokertest.Garbage, errdefs.ErrInternal, []string{"senseless", "authentication"}, 1, 0},
		"garbage key":       {brokertest.GarbageResource, errdefs.ErrInternal, []string{"senseless", uri}, 1, 1},
		"garbage token":     {brokertest.GarbageToken, errdefs.ErrInternal, []string{"senseless", "attestation"}, 1, 0},
		"endless":           {brokertest.Endless, errdefs.ErrInternal, []string{"more than"}, 1, 0},
		"redirect":          {brokertest.Redirect, errdefs.ErrInternal, []string{"status 307"}, 1, 0},
		"server error":      {brokertest.ServerError, errdefs.ErrUnavailable, []string{"after 5 attempts", "status 500", "broken by test"}, 5, 0},
		"hangs up":          {brokertest.HangUp, errdefs.ErrUnavailable, []string{"after 5 attempts", "network"}, 5, 0},
	} {
		t.Run(name, func(t *testing.T) {
			b := start(t, brokertest.Options{})
			b.Fail(tc.failure)
			c := newClient(t, b, nil)
			got, err := c.Resource(t.Context(), uri)
			if got != nil || !errors.Is(err, tc.want) {
				t.Fatalf("got %d bytes, %v", len(got), err)
			}
			if _, ok := errors.AsType[*guestkbs.Error](err); !ok {
				t.Errorf("%T is no *kbs.Error", err)
			}
			for _, word := range append(tc.words, b.URL) {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("%q is not in: %v", word, err)
				}
			}
			if a, r := b.Requests("auth"), b.Requests("resource"); a != tc.auths || r != tc.resources {
				t.Errorf("%d auth and %d resource requests, want %d and %d", a, r, tc.auths, tc.resources)
			}
			// The client is not spoiled by the failure.
			b.Fail(brokertest.FailNothing)
			if got, err := c.Resource(t.Context(), uri); err != nil || !bytes.Equal(got, key) {
				t.Errorf("after recovery: %d bytes, %v", len(got), err)
			}
		})
	}
}

func TestWrongKeyIsTheBrokersWord(t *testing.T) {
	b := start(t, brokertest.Options{})
	b.Fail(brokertest.WrongKey)
	if got, err := newClient(t, b, nil).Resource(t.Context(), uri); err != nil || !bytes.Equal(got, brokertest.WrongKeyBytes) {
		t.Errorf("got %q, %v", got, err)
	}
}

// Keys are for the caller to keep: one that the owner replaces is seen by the next call, in the same session.
func TestReplacedKey(t *testing.T) {
	b := start(t, brokertest.Options{})
	c := newClient(t, b, nil)
	for _, want := range []string{string(key), "another"} {
		b.Put(t, uri, []byte(want))
		if got, err := c.Resource(t.Context(), uri); err != nil || string(got) != want {
			t.Errorf("got %d bytes, %v; want the present key", len(got), err)
		}
	}
	if n := b.Requests("attest"); n != 1 {
		t.Errorf("%d attestations, want 1", n)
	}
}

func TestPassingFaults(t *testing.T) {
	for name, failure := range map[string]brokertest.Failure{"500": brokertest.ServerErrorOnce, "hang-up": brokertest.HangUpOnce} {
		t.Run(name, func(t *testing.T) {
			b := start(t, brokertest.Options{})
			b.Put(t, "kbs:///default/key/2", key)
			c := newClient(t, b, nil)
			for _, uri := range []string{uri, "kbs:///default/key/2"} { // first at the handshake, then at the resource
				b.Fail(failure)
				if _, err := c.Resource(t.Context(), uri); err != nil {
					t.Errorf("%s: %v", uri, err)
				}
			}
		})
	}
}

func TestBrokerDown(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	listener.Close()
	c, err := guestkbs.New(guestkbs.Options{URL: "http://" + address, Attester: attest.NewSample(), Backoff: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Resource(t.Context(), uri)
	if !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), address) || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("got %v", err)
	}
}

func TestSlowBroker(t *testing.T) {
	b := start(t, brokertest.Options{})
	b.Fail(brokertest.Slow)
	t.Run("attempt time-out", func(t *testing.T) {
		c := newClient(t, b, func(o *guestkbs.Options) { o.AttemptTimeout = 20 * time.Millisecond })
		if _, err := c.Resource(t.Context(), uri); !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), "after 2 attempts: no answer in time") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("caller's deadline", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if _, err := newClient(t, b, nil).Resource(ctx, uri); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), b.URL) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("waiter takes over", func(t *testing.T) {
		c := newClient(t, b, nil)
		ctx, cancel := context.WithCancel(t.Context())
		first := make(chan error, 1)
		before := b.Requests("auth")
		go func() {
			_, err := c.Resource(ctx, uri)
			first <- err
		}()
		b.Await("auth", before+1)
		second := make(chan error, 1)
		go func() {
			_, err := c.Resource(t.Context(), uri)
			second <- err
		}()
		cancel()
		if err := <-first; !errors.Is(err, context.Canceled) {
			t.Errorf("first: %v", err)
		}
		b.Fail(brokertest.FailNothing)
		if err := <-second; err != nil {
			t.Errorf("second: %v", err)
		}
	})
}

func TestSampleNeedsPermission(t *testing.T) {
	b := start(t, brokertest.Options{RefuseSample: true})
	_, err := newClient(t, b, nil).Resource(t.Context(), uri)
	if !errors.Is(err, errdefs.ErrPermissionDenied) || !strings.Contains(err.Error(), "--allow-sample") {
		t.Errorf("got %v", err)
	}
	if n := b.Requests("attest"); n != 0 {
		t.Errorf("%d attestations", n)
	}
	records := b.Audit()
	if len(records) != 1 || records[0].Decision != audit.Refused || records[0].TEE != "sample" {
		t.Errorf("audit log: %+v", records)
	}
}

func TestTLSTrust(t *testing.T) {
	b := start(t, brokertest.Options{TLS: true})
	other := start(t, brokertest.Options{TLS: true})
	for name, ca := range map[string][]byte{"other CA": other.CACertPEM, "system's CAs": nil} {
		c := newClient(t, b, func(o *guestkbs.Options) { o.CACertPEM = ca })
		_, err := c.Resource(t.Context(), uri)
		if !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), "certificate is not trusted") || !strings.Contains(err.Error(), "kbs_cert") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := b.Requests("auth"); n != 0 {
		t.Errorf("%d requests reached a broker that was not trusted", n)
	}
}

// A token that has come near its end is renewed before use; a session that the broker lost is renewed once.
func TestRenewal(t *testing.T) {
	b := start(t, brokertest.Options{TokenLifetime: 5 * time.Second}) // shorter than the client's margin
	b.Put(t, "kbs:///default/key/2", key)
	c := newClient(t, b, nil)
	for _, uri := range []string{uri, "kbs:///default/key/2"} {
		if _, err := c.Resource(t.Context(), uri); err != nil {
			t.Fatal(err)
		}
	}
	if n := b.Requests("attest"); n != 2 {
		t.Errorf("%d attestations, want 2", n)
	}
	if n := b.Requests("resource"); n != 2 {
		t.Errorf("%d resource requests, want 2", n)
	}
}

func TestLostSession(t *testing.T) {
	var mu sync.Mutex
	var ahead time.Duration
	b := start(t, brokertest.Options{Now: func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return time.Now().Add(ahead)
	}})
	b.Put(t, "kbs:///default/key/2", key)
	c := newClient(t, b, nil)
	if _, err := c.Resource(t.Context(), uri); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	ahead = time.Hour // for the broker the session and its token are over
	mu.Unlock()
	if _, err := c.Resource(t.Context(), "kbs:///default/key/2"); err != nil {
		t.Fatal(err)
	}
	if a, r := b.Requests("attest"), b.Requests("resource"); a != 2 || r != 3 {
		t.Errorf("%d attestations and %d resource requests, want 2 and 3", a, r)
	}
}
