package kbs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/go-jose/go-jose/v4"

	proto "github.com/coffer-project/coffer/proto/kbs"
)

// keyPair is the key that one session's resources are sealed for. The private half never leaves the guest.
type keyPair struct {
	private *ecdsa.PrivateKey
	jwk     json.RawMessage
}

func newKeyPair() (*keyPair, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate session key: %w", err)
	}
	point, err := private.PublicKey.Bytes() // 0x04, then x and y with 32 bytes each
	if err != nil {
		return nil, fmt.Errorf("encode session key: %w", err)
	}
	jwk, err := json.Marshal(map[string]string{
		"kty": "EC",
		"crv": "P-256",
		"alg": string(jose.ECDH_ES_A256KW),
		"x":   base64.RawURLEncoding.EncodeToString(point[1:33]),
		"y":   base64.RawURLEncoding.EncodeToString(point[33:]),
	})
	if err != nil {
		return nil, fmt.Errorf("encode session key: %w", err)
	}
	return &keyPair{private: private, jwk: jwk}, nil
}

// open decrypts a sealed resource. Only the algorithms that we announced are accepted. The error says nothing about the content.
func (k *keyPair) open(body []byte) ([]byte, error) {
	var shape struct {
		Protected    string          `json:"protected"`
		EncryptedKey string          `json:"encrypted_key"`
		IV           string          `json:"iv"`
		Ciphertext   string          `json:"ciphertext"`
		Tag          string          `json:"tag"`
		AAD          *string         `json:"aad"`
		Recipients   json.RawMessage `json:"recipients"`
		Header       json.RawMessage `json:"header"`
		Unprotected  json.RawMessage `json:"unprotected"`
	}
	if err := proto.Decode(body, proto.MaxResourceReply, &shape); err != nil {
		return nil, err
	}
	if shape.Recipients != nil || shape.Header != nil || shape.Unprotected != nil || shape.Protected == "" {
		return nil, errors.New("it is not a flattened JWE with a protected header only")
	}
	sealed, err := jose.ParseEncryptedJSON(string(body), []jose.KeyAlgorithm{jose.ECDH_ES_A256KW}, []jose.ContentEncryption{jose.A256GCM})
	if err != nil {
		return nil, errors.New("it is not a JWE with ECDH-ES+A256KW and A256GCM")
	}
	plain, err := sealed.Decrypt(k.private)
	if err != nil {
		return nil, errors.New("it does not open with this session's key")
	}
	if len(plain) > proto.MaxResource {
		return nil, fmt.Errorf("the resource has more than %d bytes", proto.MaxResource)
	}
	return plain, nil
}
