package kbs

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/hex"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	proto "github.com/coffer-project/coffer/proto/kbs"
)

// testdata/resource.jwe.json was made step by step from the protocol's text with another implementation (Python's cryptography: ECDH,
// Concat KDF, AES key wrap, AES-GCM with the protected header as additional data), for this private key.
const vectorScalar = "04983c60f7daadc1cb8698621f802c0d9f9a3c3c295c810748fb048115c186ed"

const vectorPlain = "a key of 32 bytes, made by hand."

func vector(tb testing.TB) (*keyPair, []byte) {
	tb.Helper()
	scalar, err := hex.DecodeString(vectorScalar)
	if err != nil {
		tb.Fatal(err)
	}
	private, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), scalar)
	if err != nil {
		tb.Fatal(err)
	}
	raw, err := os.ReadFile("testdata/resource.jwe.json")
	if err != nil {
		tb.Fatal(err)
	}
	return &keyPair{private: private}, raw
}

func TestOpenVector(t *testing.T) {
	key, raw := vector(t)
	if plain, err := key.open(raw); err != nil || string(plain) != vectorPlain {
		t.Errorf("got %q, %v", plain, err)
	}
}

func TestOpenRefuses(t *testing.T) {
	key, raw := vector(t)
	edit := func(f func(map[string]any)) []byte {
		var jwe map[string]any
		if err := json.Unmarshal(raw, &jwe); err != nil {
			t.Fatal(err)
		}
		f(jwe)
		out, err := json.Marshal(jwe)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	other, err := newKeyPair()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.open(raw); err == nil {
		t.Error("opened with another key")
	}
	for name, body := range map[string][]byte{
		"empty":           nil,
		"plain bytes":     []byte(vectorPlain),
		"compact":         []byte(`"a.b.c.d.e"`),
		"flipped text":    edit(func(j map[string]any) { j["ciphertext"] = "B" + j["ciphertext"].(string)[1:] }),
		"flipped tag":     edit(func(j map[string]any) { j["tag"] = "B" + j["tag"].(string)[1:] }),
		"no tag":          edit(func(j map[string]any) { delete(j, "tag") }),
		"other aad":       edit(func(j map[string]any) { j["aad"] = "eA" }),
		"recipients":      edit(func(j map[string]any) { j["recipients"] = []any{map[string]any{"encrypted_key": j["encrypted_key"]}} }),
		"loose header":    edit(func(j map[string]any) { j["header"] = map[string]any{"alg": "dir"} }),
		"unprotected":     edit(func(j map[string]any) { j["unprotected"] = map[string]any{"alg": "dir"} }),
		"no protected":    edit(func(j map[string]any) { delete(j, "protected") }),
		"other algorithm": sealed(t, key.private, jose.ECDH_ES_A128KW, jose.A256GCM, nil),
		"direct key":      sealed(t, key.private, jose.ECDH_ES, jose.A256GCM, nil),
		"other cipher":    sealed(t, key.private, jose.ECDH_ES_A256KW, jose.A256CBC_HS512, nil),
		"too large":       sealed(t, key.private, jose.ECDH_ES_A256KW, jose.A256GCM, make([]byte, proto.MaxResource+1)),
		"duplicate":       append([]byte(`{"tag":"",`), bytes.TrimLeft(raw, "{")...),
	} {
		t.Run(name, func(t *testing.T) {
			plain, err := key.open(body)
			if err == nil {
				t.Fatalf("opened to %d bytes", len(plain))
			}
			if strings.Contains(err.Error(), "made by hand") {
				t.Errorf("error shows the key: %v", err)
			}
		})
	}
}

func sealed(t *testing.T, key *ecdsa.PrivateKey, alg jose.KeyAlgorithm, enc jose.ContentEncryption, plain []byte) []byte {
	t.Helper()
	e, err := jose.NewEncrypter(enc, jose.Recipient{Algorithm: alg, Key: &key.PublicKey}, nil)
	if err != nil {
		t.Fatal(err)
	}
	jwe, err := e.Encrypt(plain)
	if err != nil {
		t.Fatal(err)
	}
	return []byte(jwe.FullSerialize())
}

// The public half has the members of the protocol and no others: brokers hash what they know.
func TestPublicKeyShape(t *testing.T) {
	key, err := newKeyPair()
	if err != nil {
		t.Fatal(err)
	}
	var jwk map[string]string
	if err := json.Unmarshal(key.jwk, &jwk); err != nil {
		t.Fatal(err)
	}
	if len(jwk) != 5 || jwk["kty"] != "EC" || jwk["crv"] != "P-256" || jwk["alg"] != "ECDH-ES+A256KW" || len(jwk["x"]) != 43 || len(jwk["y"]) != 43 {
		t.Errorf("got %s", key.jwk)
	}
}

func FuzzOpen(f *testing.F) {
	key, raw := vector(f)
	f.Add(raw)
	f.Fuzz(func(t *testing.T, body []byte) {
		if plain, err := key.open(body); err == nil && string(plain) != vectorPlain {
			t.Errorf("opened to %q", plain)
		}
	})
}
