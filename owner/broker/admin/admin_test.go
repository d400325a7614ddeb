package admin

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func newKey(tb testing.TB) (ed25519.PublicKey, ed25519.PrivateKey) {
	tb.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		tb.Fatal(err)
	}
	return public, private
}

func sign(t *testing.T, key ed25519.PrivateKey, c any) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: key}, nil)
	if err != nil {
		t.Fatal(err)
	}
	token, err := jwt.Signed(signer).Claims(c).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func TestVerify(t *testing.T) {
	public, private := newKey(t)
	_, stranger := newKey(t)
	other, _ := newKey(t)
	good, err := Sign(private, now, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := Sign(stranger, now, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	mac := hmac.New(sha256.New, public)
	confused := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"HS256"}`)) + "." + strings.Split(good, ".")[1]
	mac.Write([]byte(confused))
	for name, tc := range map[string]struct {
		token string
		at    time.Time
		v     Verifier
		ok    bool
	}{
		"good":            {token: good, at: now, ok: true},
		"role":            {token: good, at: now, v: Verifier{Role: claimedRole}, ok: true},
		"clock skew":      {token: good, at: now.Add(-30 * time.Second), ok: true},
		"CoCo's form":     {token: sign(t, private, map[string]any{"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(2 * time.Hour).Unix()}), at: now, ok: true},
		"expired":         {token: good, at: now.Add(3 * time.Minute)},
		"not yet":         {token: good, at: now.Add(-time.Hour)},
		"other key":       {token: foreign, at: now},
		"other role":      {token: good, at: now, v: Verifier{Role: "root"}},
		"other issuer":    {token: good, at: now, v: Verifier{Issuer: "https://idp"}},
		"other audience":  {token: good, at: now, v: Verifier{Audience: "kbs"}},
		"without end":     {token: sign(t, private, map[string]any{"iat": now.Unix()}), at: now},
		"too long":        {token: sign(t, private, map[string]any{"exp": now.Add(48 * time.Hour).Unix()}), at: now},
		"empty":           {token: "", at: now},
		"garbage":         {token: "a.b.c", at: now},
		"unsigned":        {token: base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." + strings.Split(good, ".")[1] + ".", at: now},
		"HMAC with key":   {token: confused + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil)), at: now},
		"changed payload": {token: strings.Split(good, ".")[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(`{"exp":99999999999}`)) + "." + strings.Split(good, ".")[2], at: now},
		"huge":            {token: strings.Repeat("a", 10_000), at: now},
	} {
		t.Run(name, func(t *testing.T) {
			tc.v.Admins = []Admin{{Name: "other", Key: other}, {Name: "ann", Key: public, Roles: []Role{RoleAuditor}}}
			who, err := tc.v.Verify(tc.token, tc.at)
			if tc.ok && (err != nil || who.Name != "ann" || len(who.Roles) != 1) || !tc.ok && !errors.Is(err, errdefs.ErrPermissionDenied) {
				t.Errorf("got %v", err)
			}
		})
	}
	if _, err := (&Verifier{}).Verify(good, now); !errors.Is(err, errdefs.ErrPermissionDenied) {
		t.Errorf("no keys: %v", err)
	}
	if _, err := Sign(nil, now, time.Minute); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("no private key: %v", err)
	}
}

func FuzzVerify(f *testing.F) {
	_, private := newKey(f)
	good, err := Sign(private, now, time.Minute)
	if err != nil {
		f.Fatal(err)
	}
	stranger, _ := newKey(f)
	f.Add(good)
	v := Verifier{Admins: []Admin{{Name: "other", Key: stranger}}}
	f.Fuzz(func(t *testing.T, token string) {
		if _, err := v.Verify(token, now); err == nil {
			t.Errorf("accepted %q", token)
		}
	})
}

func TestRoles(t *testing.T) {
	for role, want := range map[Role]struct{ may, mayNot Permission }{
		RoleAdmin:      {WritePolicies, ""},
		RoleResources:  {WriteResources, WritePolicies},
		RolePolicies:   {WritePolicies, WriteResources},
		RoleReferences: {WriteReferences, ListResources},
		RoleAuditor:    {ReadPolicies, WriteReferences},
		"root":         {"", ReadStatus},
	} {
		who := Identity{Name: "ann", Roles: []Role{role}}
		if err := who.Check(want.may); want.may != "" && err != nil {
			t.Errorf("%s: %v", role, err)
		}
		if err := who.Check(want.mayNot); want.mayNot != "" && !errors.Is(err, errdefs.ErrPermissionDenied) {
			t.Errorf("%s may %s: %v", role, want.mayNot, err)
		}
		if err := role.Validate(); (err != nil) != (role == "root") {
			t.Errorf("%s: %v", role, err)
		}
	}
	both := Identity{Roles: []Role{RoleResources, RoleReferences}}
	if both.Check(WriteResources) != nil || both.Check(WriteReferences) != nil || both.Check(WritePolicies) == nil {
		t.Error("two roles do not add up")
	}
}
