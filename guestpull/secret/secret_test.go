package secret

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/initdata"
	"github.com/coffer-project/coffer/proto/sealed"
)

const (
	password    = "kbs:///default/secret/db"
	signingKey  = "kbs:///default/signing/team"
	strangerKey = "kbs:///default/signing/stranger"
	missing     = "kbs:///default/secret/missing"
	plaintext   = "correct horse battery staple"
)

// broker counts what is asked for.
type broker struct {
	mu    sync.Mutex
	has   map[string][]byte
	asked map[string]int
	block chan struct{} // when set, answers wait for its end
}

func (b *broker) Resource(ctx context.Context, uri string) ([]byte, error) {
	b.mu.Lock()
	value, ok := b.has[uri]
	b.asked[uri]++
	block := b.block
	b.mu.Unlock()
	if block != nil {
		select {
		case <-block:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if !ok {
		return nil, errdefs.ErrNotFound
	}
	return value, nil
}

type keys struct{ team, stranger *ecdsa.PrivateKey }

func newBroker(t *testing.T) (*broker, keys) {
	t.Helper()
	b := &broker{has: map[string][]byte{password: []byte(plaintext), "kbs:///default/secret/text": []byte("no key")}, asked: map[string]int{}}
	var made []*ecdsa.PrivateKey
	for _, name := range []string{signingKey, strangerKey} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if b.has[name], err = sealed.EncodeKey(&key.PublicKey); err != nil {
			t.Fatal(err)
		}
		made = append(made, key)
	}
	return b, keys{made[0], made[1]}
}

func seal(t *testing.T, name, kid string, key *ecdsa.PrivateKey) string {
	t.Helper()
	text, err := (&sealed.Vault{Provider: sealed.ProviderKBS, Name: name}).Sign(kid, func(digest []byte) ([]byte, error) {
		return ecdsa.SignASN1(rand.Reader, key, digest)
	})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func unsigned(t *testing.T, provider, name string) string {
	t.Helper()
	text, err := (&sealed.Vault{Provider: provider, Name: name}).Unsigned()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// envelope is an unsigned secret of the other type.
func envelope(t *testing.T, provider string) string {
	t.Helper()
	payload := `{"version":"0.1.0","type":"envelope","provider":"` + provider + `","key_id":"kbs:///default/key/1","encrypted_key":"a2V5",` +
		`"encrypted_data":"ZGF0YQ==","wrap_type":"A256GCM","iv":"aXY=","provider_settings":{},"annotations":{}}`
	return sealed.Prefix + "fakejwsheader." + base64.RawURLEncoding.EncodeToString([]byte(payload)) + ".fakesignature"
}

func TestUnseal(t *testing.T) {
	b, k := newBroker(t)
	good, strange := seal(t, password, signingKey, k.team), seal(t, password, strangerKey, k.stranger)
	only := initdata.SecretsConfig{Signers: []string{signingKey}}
	for name, tc := range map[string]struct {
		text    string
		config  initdata.SecretsConfig
		want    error
		message string
	}{
		"signed":                   {good, initdata.SecretsConfig{}, nil, ""},
		"signed by one of ours":    {good, only, nil, ""},
		"addresses count not":      {seal(t, "kbs://evil:1/default/secret/db", "kbs://evil/default/signing/team", k.team), only, nil, ""},
		"any key of the broker":    {strange, initdata.SecretsConfig{}, nil, ""},
		"unsigned where allowed":   {unsigned(t, sealed.ProviderKBS, password), initdata.SecretsConfig{Unsigned: true}, nil, ""},
		"signed, unsigned allowed": {good, initdata.SecretsConfig{Unsigned: true}, nil, ""},

		"provider in capitals": {unsigned(t, "KBS", password), initdata.SecretsConfig{Unsigned: true}, nil, ""},

		"unsigned":                     {unsigned(t, sealed.ProviderKBS, password), initdata.SecretsConfig{}, errdefs.ErrPermissionDenied, "secrets.unsigned"},
		"signed by a stranger":         {strange, only, errdefs.ErrPermissionDenied, "none of secrets.signers"},
		"in another's name":            {seal(t, password, signingKey, k.stranger), only, errdefs.ErrPermissionDenied, "not signed by key"},
		"wrong where none is needed":   {seal(t, password, signingKey, k.stranger), initdata.SecretsConfig{Unsigned: true}, errdefs.ErrPermissionDenied, "not signed by key"},
		"a key that there is not":      {seal(t, password, missing, k.team), initdata.SecretsConfig{}, errdefs.ErrNotFound, "signing key"},
		"a key that is none":           {seal(t, password, "kbs:///default/secret/text", k.team), initdata.SecretsConfig{}, errdefs.ErrInvalidArgument, "kbs:///default/secret/text"},
		"a key that is a file":         {seal(t, password, "../../etc/key", k.team), initdata.SecretsConfig{}, errdefs.ErrInvalidArgument, "signing key"},
		"a secret that there is not":   {seal(t, missing, signingKey, k.team), only, errdefs.ErrNotFound, missing},
		"a name that is none":          {seal(t, "kbs:///a/../b", signingKey, k.team), only, errdefs.ErrInvalidArgument, "kbs:///repository/type/tag"},
		"another provider":             {unsigned(t, "aws", password), initdata.SecretsConfig{Unsigned: true}, errdefs.ErrNotImplemented, `"aws"`},
		"an envelope":                  {envelope(t, "kbs"), initdata.SecretsConfig{Unsigned: true}, errdefs.ErrNotImplemented, "cofferctl secret seal"},
		"no sealed secret":             {sealed.Prefix + "txt", initdata.SecretsConfig{Unsigned: true}, errdefs.ErrInvalidArgument, "HEADER.PAYLOAD.SIGNATURE"},
		"a secret in place of its key": {seal(t, password, password, k.team), initdata.SecretsConfig{}, errdefs.ErrInvalidArgument, password},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := New(b, tc.config).Unseal(t.Context(), tc.text)
			if !errors.Is(err, tc.want) {
				t.Fatal(err)
			}
			switch {
			case err == nil && string(got) != plaintext:
				t.Errorf("got %d bytes", len(got))
			case err != nil && (got != nil || !strings.Contains(err.Error(), tc.message) || strings.Contains(err.Error(), plaintext)):
				t.Errorf("error: %v", err)
			}
		})
	}
	if _, err := New(nil, only).Unseal(t.Context(), good); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("without a broker: %v", err)
	}
}

// TestRefusedAsksForNothing: what does not count costs no request, so that a host cannot learn what there is.
func TestRefusedAsksForNothing(t *testing.T) {
	b, k := newBroker(t)
	u := New(b, initdata.SecretsConfig{Signers: []string{signingKey}})
	for _, text := range []string{unsigned(t, sealed.ProviderKBS, password), seal(t, password, strangerKey, k.stranger), seal(t, password, signingKey, k.stranger)} {
		if _, err := u.Unseal(t.Context(), text); !errdefs.IsPermissionDenied(err) {
			t.Error(err)
		}
	}
	if b.asked[password] != 0 || b.asked[strangerKey] != 0 || b.asked[signingKey] != 1 {
		t.Errorf("asked for %v", b.asked)
	}
}

// TestOneFetch: containers of a pod share what was fetched, also while it is being fetched, and a failure is no answer for ever.
func TestOneFetch(t *testing.T) {
	b, k := newBroker(t)
	text := seal(t, password, signingKey, k.team)
	u := New(b, initdata.SecretsConfig{})
	b.block = make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := u.Unseal(ctx, text); !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			if got, err := u.Unseal(t.Context(), text); err != nil || string(got) != plaintext {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
	close(b.block)
	group.Wait()
	if b.asked[password] != 1 || b.asked[signingKey] != 1 {
		t.Errorf("asked for %v", b.asked)
	}

	late := seal(t, missing, signingKey, k.team)
	if _, err := u.Unseal(t.Context(), late); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	b.mu.Lock()
	b.has[missing] = []byte(plaintext)
	b.mu.Unlock()
	if got, err := u.Unseal(t.Context(), late); err != nil || string(got) != plaintext {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// TestSealedAnew: a secret that was exchanged at the broker comes with a new sealed text, and not with the old one.
func TestSealedAnew(t *testing.T) {
	b, k := newBroker(t)
	u := New(b, initdata.SecretsConfig{})
	old := seal(t, password, signingKey, k.team)
	for _, step := range []struct{ at, text, want string }{
		{plaintext, old, plaintext}, {"new", old, plaintext}, {"new", seal(t, password, signingKey, k.team), "new"}, {"newer", old, plaintext},
	} {
		b.has[password] = []byte(step.at)
		if got, err := u.Unseal(t.Context(), step.text); err != nil || string(got) != step.want {
			t.Errorf("got %q, want %q: %v", got, step.want, err)
		}
	}
	if b.asked[password] != 2 || b.asked[signingKey] != 1 {
		t.Errorf("asked for %v", b.asked)
	}
}

// TestBound: a host that seals without end does not fill the guest, and does not end its secrets either.
func TestBound(t *testing.T) {
	b, k := newBroker(t)
	u := New(b, initdata.SecretsConfig{})
	first := seal(t, password, signingKey, k.team)
	for i := range maxKept + 2 {
		text := first
		if i > 0 {
			text = seal(t, password, signingKey, k.team)
		}
		if _, err := u.Unseal(t.Context(), text); err != nil {
			t.Fatal(err)
		}
	}
	if _, still := u.kept[first]; still || len(u.kept) != maxKept || len(u.ages) != maxKept {
		t.Errorf("%d are kept, %d by age, the first %t", len(u.kept), len(u.ages), still)
	}
	if got, err := u.Unseal(t.Context(), first); err != nil || string(got) != plaintext {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}
