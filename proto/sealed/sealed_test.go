package sealed

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

const (
	header = `{"alg":"ES256","kid":"kbs:///default/signing/1"}`
	vault  = `{"version":"0.1.0","type":"vault","provider":"kbs","name":"kbs:///default/secret/1","provider_settings":{},"annotations":{}}`
)

var someSignature = strings.Repeat("s", signatureSize)

// text puts a secret together.
func text(header, payload, signature string) string {
	b := base64.RawURLEncoding.EncodeToString
	return Prefix + b([]byte(header)) + "." + b([]byte(payload)) + "." + b([]byte(signature))
}

func unsigned(payload string) string {
	return Prefix + fakeHeader + "." + base64.RawURLEncoding.EncodeToString([]byte(payload)) + "." + fakeSignature
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	raw, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// TestOthers: a secret and a key that the tools of Confidential Containers made, published for Kata's tests.
func TestOthers(t *testing.T) {
	key, err := ParseKey(read(t, "key.jwk.json"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := Parse(string(read(t, "vault.txt")))
	if err != nil {
		t.Fatal(err)
	}
	if s.KeyID != "kbs:///default/signing-key/sealed-secret" || s.Vault == nil || s.Vault.Provider != ProviderKBS || s.Vault.Name != "kbs:///default/sealed-secret/test" {
		t.Errorf("read %+v, %+v", s, s.Vault)
	}
	if err := s.Verify(key); err != nil {
		t.Error(err)
	}
}

func TestParse(t *testing.T) {
	const envelope = `{"version":"0.1.0","type":"envelope","provider":"aliyun","key_id":"k","encrypted_key":"a2V5","encrypted_data":"ZGF0YQ==","wrap_type":"A256GCM","iv":"aXY=","provider_settings":{"a":"b"}}`
	swap := func(from, to string) string { return unsigned(strings.Replace(vault, from, to, 1)) }
	for name, tc := range map[string]struct {
		text string
		want error
	}{
		"signed":               {text(header, vault, someSignature), nil},
		"unsigned":             {unsigned(vault), nil},
		"envelope":             {unsigned(envelope), nil},
		"all of a header":      {text(`{"typ":"JWT","b64":true,"alg":"ES256","kid":"a"}`, vault, someSignature), nil},
		"without settings":     {unsigned(`{"version":"0.1.0","type":"vault","provider":"kbs","name":"n"}`), nil},
		"empty":                {"", errdefs.ErrInvalidArgument},
		"prefix alone":         {Prefix, errdefs.ErrInvalidArgument},
		"another prefix":       {strings.TrimPrefix(unsigned(vault), "sealed"), errdefs.ErrInvalidArgument},
		"two parts":            {Prefix + "a.b", errdefs.ErrInvalidArgument},
		"four parts":           {unsigned(vault) + ".a", errdefs.ErrInvalidArgument},
		"padding":              {Prefix + fakeHeader + "." + base64.URLEncoding.EncodeToString([]byte(vault+"  ")) + "=." + fakeSignature, errdefs.ErrInvalidArgument},
		"line end":             {strings.Replace(unsigned(vault), "."+fakeSignature, "\n."+fakeSignature, 1), errdefs.ErrInvalidArgument},
		"too long":             {unsigned(vault + strings.Repeat(" ", MaxText)), errdefs.ErrInvalidArgument},
		"half unsigned":        {strings.Replace(text(header, vault, someSignature), base64.RawURLEncoding.EncodeToString([]byte(header)), fakeHeader, 1), errdefs.ErrInvalidArgument},
		"signature cut":        {text(header, vault, someSignature[1:]), errdefs.ErrInvalidArgument},
		"signature faked":      {strings.Replace(text(header, vault, someSignature), base64.RawURLEncoding.EncodeToString([]byte(someSignature)), fakeSignature, 1), errdefs.ErrInvalidArgument},
		"no algorithm":         {text(`{"kid":"a"}`, vault, someSignature), errdefs.ErrInvalidArgument},
		"algorithm none":       {text(`{"alg":"none","kid":"a"}`, vault, someSignature), errdefs.ErrInvalidArgument},
		"symmetric":            {text(`{"alg":"HS256","kid":"a"}`, vault, someSignature), errdefs.ErrInvalidArgument},
		"no key":               {text(`{"alg":"ES256"}`, vault, someSignature), errdefs.ErrInvalidArgument},
		"key in the header":    {text(`{"alg":"ES256","kid":"a","jwk":{}}`, vault, someSignature), errdefs.ErrInvalidArgument},
		"critical member":      {text(`{"alg":"ES256","kid":"a","crit":["exp"],"exp":1}`, vault, someSignature), errdefs.ErrInvalidArgument},
		"payload not encoded":  {text(`{"alg":"ES256","kid":"a","b64":false}`, vault, someSignature), errdefs.ErrInvalidArgument},
		"two keys":             {text(`{"alg":"ES256","kid":"a","kid":"b"}`, vault, someSignature), errdefs.ErrInvalidArgument},
		"key with a line end":  {text(`{"alg":"ES256","kid":"a\nb"}`, vault, someSignature), errdefs.ErrInvalidArgument},
		"another version":      {swap("0.1.0", "0.2.0"), errdefs.ErrInvalidArgument},
		"another type":         {swap(`"vault"`, `"box"`), errdefs.ErrInvalidArgument},
		"no type":              {swap(`"type":"vault",`, ""), errdefs.ErrInvalidArgument},
		"no provider":          {swap(`"provider":"kbs",`, ""), errdefs.ErrInvalidArgument},
		"no name":              {swap(`"name":"kbs:///default/secret/1",`, ""), errdefs.ErrInvalidArgument},
		"long name":            {swap("secret", strings.Repeat("s", maxName)), errdefs.ErrInvalidArgument},
		"two names":            {swap(`"name"`, `"name":"x","name"`), errdefs.ErrInvalidArgument},
		"unknown member":       {swap(`"name"`, `"Name":"x","name"`), errdefs.ErrInvalidArgument},
		"members of both":      {swap(`"name"`, `"iv":"x","name"`), errdefs.ErrInvalidArgument},
		"settings not object":  {swap(`"provider_settings":{}`, `"provider_settings":[]`), errdefs.ErrInvalidArgument},
		"half a character":     {swap("secret", `\ud800`), errdefs.ErrInvalidArgument},
		"not UTF-8":            {swap("secret", "\xff"), errdefs.ErrInvalidArgument},
		"not JSON":             {unsigned("x"), errdefs.ErrInvalidArgument},
		"envelope in AES-CTR":  {unsigned(strings.Replace(envelope, "A256GCM", "A256CTR", 1)), errdefs.ErrInvalidArgument},
		"envelope without key": {unsigned(strings.Replace(envelope, "a2V5", "", 1)), errdefs.ErrInvalidArgument},
		"envelope, not base64": {unsigned(strings.Replace(envelope, "a2V5", "a2V!", 1)), errdefs.ErrInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := Parse(tc.text)
			if !errors.Is(err, tc.want) {
				t.Fatal(err)
			}
			if err == nil && (s.Vault == nil) == (s.Envelope == nil) {
				t.Errorf("read %+v", s)
			}
		})
	}
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func signer(key *ecdsa.PrivateKey) func([]byte) ([]byte, error) {
	return func(digest []byte) ([]byte, error) { return ecdsa.SignASN1(rand.Reader, key, digest) }
}

func TestSign(t *testing.T) {
	key := newKey(t)
	v := &Vault{Provider: ProviderKBS, Name: "kbs:///default/secret/1"}
	signed, err := v.Sign("kbs:///default/signing/1", signer(key))
	if err != nil {
		t.Fatal(err)
	}
	s, err := Parse(signed)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(&key.PublicKey); err != nil {
		t.Error(err)
	}
	if err := s.Verify(&newKey(t).PublicKey); !errdefs.IsPermissionDenied(err) {
		t.Errorf("another key: %v", err)
	}
	other, err := Parse(strings.Replace(signed, strings.Split(signed, ".")[2], base64.RawURLEncoding.EncodeToString([]byte(strings.Replace(vault, "secret", "others", 1))), 1))
	if err != nil || !errdefs.IsPermissionDenied(other.Verify(&key.PublicKey)) {
		t.Errorf("another name under the signature: %v", err)
	}
	open, err := v.Unsigned()
	if err != nil {
		t.Fatal(err)
	}
	if s, err = Parse(open); err != nil || s.Signed() || !reflect.DeepEqual(s.Vault.Name, v.Name) || !errdefs.IsPermissionDenied(s.Verify(&key.PublicKey)) {
		t.Errorf("unsigned: %+v, %v", s, err)
	}
	if _, err := (&Vault{Provider: ProviderKBS, Name: "a\nb"}).Unsigned(); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a name that no guest reads: %v", err)
	}
	wide, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Sign("k", signer(wide)); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a key on another curve: %v", err)
	}
}

func TestParseKey(t *testing.T) {
	key := newKey(t)
	jwk, err := EncodeKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	pemOf := func(public any) string {
		der, err := x509.MarshalPKIXPublicKey(public)
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	}
	wide, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		text string
		want error
	}{
		"JWK":               {string(jwk), nil},
		"PEM":               {pemOf(&key.PublicKey), nil},
		"private JWK":       {strings.Replace(string(jwk), "{", `{"d":"AA",`, 1), errdefs.ErrInvalidArgument},
		"another algorithm": {strings.Replace(string(jwk), "ES256", "ES384", 1), errdefs.ErrInvalidArgument},
		"another curve":     {strings.Replace(string(jwk), "P-256", "P-384", 1), errdefs.ErrInvalidArgument},
		"no point":          {strings.Replace(string(jwk), `"y":"`, `"y":"A`, 1), errdefs.ErrInvalidArgument},
		"not on the curve":  {`{"kty":"EC","crv":"P-256","x":"` + strings.Repeat("A", 43) + `","y":"` + strings.Repeat("A", 43) + `"}`, errdefs.ErrInvalidArgument},
		"PEM of P-384":      {pemOf(&wide.PublicKey), errdefs.ErrInvalidArgument},
		"PEM of a certificate": {strings.ReplaceAll(pemOf(&key.PublicKey), "PUBLIC KEY", "CERTIFICATE"),
			errdefs.ErrInvalidArgument},
		"two PEM blocks": {pemOf(&key.PublicKey) + pemOf(&key.PublicKey), errdefs.ErrInvalidArgument},
		"text":           {"key", errdefs.ErrInvalidArgument},
		"long":           {strings.Repeat(" ", MaxKey+1), errdefs.ErrInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ParseKey([]byte(tc.text))
			if !errors.Is(err, tc.want) {
				t.Fatal(err)
			}
			if err == nil && !got.Equal(&key.PublicKey) {
				t.Error("another key")
			}
		})
	}
}

// FuzzParse: what is accepted is bounded and says the same when it is written again.
func FuzzParse(f *testing.F) {
	f.Add(text(header, vault, someSignature))
	f.Add(unsigned(vault))
	f.Add(unsigned(`{"version":"0.1.0","type":"envelope","provider":"p","key_id":"k","encrypted_key":"a2V5","encrypted_data":"ZGF0YQ==","wrap_type":"A256GCM","iv":"aXY="}`))
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse(text)
		if err != nil {
			if !errdefs.IsInvalidArgument(err) || s != nil {
				t.Fatalf("%v with %+v", err, s)
			}
			return
		}
		if len(text) > MaxText || (s.Vault == nil) == (s.Envelope == nil) || s.Signed() != (len(s.signature) == signatureSize) {
			t.Fatalf("read %+v", s)
		}
		if s.Vault == nil {
			return
		}
		again, err := s.Vault.Unsigned()
		if err != nil {
			if len(text) > MaxText/8 {
				return // escaped and with all members it may be too long
			}
			t.Fatal(err)
		}
		back, err := Parse(again)
		if err != nil || back.Vault.Name != s.Vault.Name || back.Vault.Provider != s.Vault.Provider {
			t.Fatalf("%+v, %v", back, err)
		}
	})
}

// FuzzParseKey: what is accepted can be written, and is the same key.
func FuzzParseKey(f *testing.F) {
	f.Add([]byte(`{"kty":"EC","crv":"P-256","x":"4jH376AuwTUCIx65AJ_56D7SZzWf7sGcEA7_Csq21UM","y":"rjdceysnSa5ZfzWOPGCURMUuHndxBAGUu4ISTIVN0yA"}`))
	f.Add([]byte("-----BEGIN PUBLIC KEY-----\nAA==\n-----END PUBLIC KEY-----\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		key, err := ParseKey(raw)
		if err != nil {
			return
		}
		jwk, err := EncodeKey(key)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := ParseKey(jwk); err != nil || !back.Equal(key) {
			t.Fatal(err)
		}
	})
}
