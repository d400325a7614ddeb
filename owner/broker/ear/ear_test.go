package ear

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/owner/appraise"
)

var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func newKey(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

func issuer(tb testing.TB, key *ecdsa.PrivateKey, certs []*x509.Certificate, at *time.Time) *Issuer {
	tb.Helper()
	i, err := NewIssuer(key, certs, func() time.Time { return *at })
	if err != nil {
		tb.Fatal(err)
	}
	return i
}

func certificate(t *testing.T, key *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "token"}, NotBefore: now, NotAfter: now.Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func sample() Claims {
	return Claims{
		VerifierID: VerifierID{Developer: "d", Build: "b"},
		Submods: map[string]Submod{CPU: {
			Status: appraise.None, PolicyID: "p",
			Evidence: map[string]json.RawMessage{
				"sample": json.RawMessage(`{"svn":"1"}`), ReportData: json.RawMessage(`"AA=="`), RuntimeClaims: json.RawMessage(`{"tee-pubkey":{"kty":"EC"},"nonce":"n"}`),
			},
		}},
	}
}

// The layout is what Trustee's clients and policies look into.
func TestLayout(t *testing.T) {
	key := newKey(t)
	cert := certificate(t, key)
	at := now
	token, _, err := issuer(t, key, []*x509.Certificate{cert}, &at).Issue(sample(), 5*time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(token, ".")
	header, err := base64.RawURLEncoding.DecodeString(parts[0])
	if err != nil {
		t.Fatal(err)
	}
	var h struct {
		Alg, Typ string
		JWK      struct {
			Kty, Crv, X, Y string
			D              *string
			X5C            []string `json:"x5c"`
		}
	}
	if err := json.Unmarshal(header, &h); err != nil {
		t.Fatal(err)
	}
	if h.Alg != "ES256" || h.Typ != "JWT" || h.JWK.Kty != "EC" || h.JWK.Crv != "P-256" || h.JWK.D != nil || len(h.JWK.X5C) != 1 || h.JWK.X5C[0] != base64.StdEncoding.EncodeToString(cert.Raw) {
		t.Errorf("header %s", header)
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"eat_profile":"tag:github.com,2024:confidential-containers/Trustee","iss":"coffer-kbs","iat":1795435200,"exp":1795435500,` +
		`"ear.verifier-id":{"developer":"d","build":"b"},"submods":{"cpu0":{"ear.status":"none","ear.trustworthiness-vector":` +
		`{"instance-identity":0,"configuration":0,"executables":0,"file-system":0,"hardware":0,"runtime-opaque":0,"storage-opaque":0,"sourced-data":0},` +
		`"ear.appraisal-policy-id":"p","ear.veraison.annotated-evidence":{"report_data":"AA==","runtime_data_claims":{"tee-pubkey":{"kty":"EC"},"nonce":"n"},"sample":{"svn":"1"}}}}}`
	if string(payload) != want {
		t.Errorf("got  %s\nwant %s", payload, want)
	}
}

func TestVerify(t *testing.T) {
	key, at := newKey(t), now
	i := issuer(t, key, nil, &at)
	token, _, err := i.Issue(sample(), 5*time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	claims, err := i.Verify(token)
	if err != nil {
		t.Fatal(err)
	}
	if jwk, err := claims.TEEPublicKey(); err != nil || !bytes.Equal(jwk, []byte(`{"kty":"EC"}`)) {
		t.Errorf("key %s, %v", jwk, err)
	}
	if !claims.Has("sample") || claims.Has("snp") {
		t.Error("tee is not recognised")
	}
	// A header can name any key; only ours counts.
	foreign, _, err := issuer(t, newKey(t), nil, &at).Issue(sample(), 6*time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(token, ".")
	for name, tc := range map[string]struct {
		token string
		at    time.Time
	}{
		"foreign":  {foreign, now},
		"changed":  {parts[0] + "." + strings.Split(foreign, ".")[1] + "." + parts[2], now},
		"expired":  {token, now.Add(5 * time.Minute)},
		"too soon": {token, now.Add(-2 * time.Minute)},
		"garbage":  {"a.b.c", now},
		"empty":    {"", now},
		"huge":     {strings.Repeat("a", 1<<20), now},
	} {
		at = tc.at
		if claims, err := i.Verify(tc.token); !errors.Is(err, errdefs.ErrPermissionDenied) {
			t.Errorf("%s: got %+v, %v", name, claims, err)
		}
	}
}

func TestNewIssuerRefuses(t *testing.T) {
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewIssuer(p384, nil, time.Now); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("P-384: %v", err)
	}
	if _, err := NewIssuer(newKey(t), []*x509.Certificate{certificate(t, newKey(t))}, time.Now); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("foreign certificate: %v", err)
	}
}

func TestTEEPublicKeyMissing(t *testing.T) {
	for name, c := range map[string]Claims{
		"no submods": {},
		"no claims":  {Submods: map[string]Submod{CPU: {}}},
		"no key":     {Submods: map[string]Submod{CPU: {Evidence: map[string]json.RawMessage{RuntimeClaims: json.RawMessage(`{}`)}}}},
		"text":       {Submods: map[string]Submod{CPU: {Evidence: map[string]json.RawMessage{RuntimeClaims: json.RawMessage(`"x"`)}}}},
	} {
		if key, err := c.TEEPublicKey(); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: got %s, %v", name, key, err)
		}
	}
}

func FuzzVerify(f *testing.F) {
	at := now
	i := issuer(f, newKey(f), nil, &at)
	token, _, err := issuer(f, newKey(f), nil, &at).Issue(sample(), time.Minute)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(token)
	f.Fuzz(func(t *testing.T, token string) {
		if claims, err := i.Verify(token); err == nil {
			t.Errorf("accepted %q as %+v", token, claims)
		}
	})
}
