package broker

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	"github.com/go-jose/go-jose/v4"
	josecipher "github.com/go-jose/go-jose/v4/cipher"

	"github.com/coffer-project/coffer/proto/kbs"
)

// cekSize is the size of a content encryption key of A256GCM, and of the key that wraps it, in bytes.
const cekSize = 32

// sealedResource is a flattened JWE (RFC 7516, section 7.2.2). Its members are in base64url.
type sealedResource struct {
	Protected    string `json:"protected"`
	EncryptedKey string `json:"encrypted_key"`
	IV           string `json:"iv"`
	Ciphertext   string `json:"ciphertext"`
	Tag          string `json:"tag"`
}

// protectedHeader is what a sealedResource protects besides the resource.
type protectedHeader struct {
	Algorithm  jose.KeyAlgorithm      `json:"alg"`
	Encryption jose.ContentEncryption `json:"enc"`
	Ephemeral  *ephemeralKey          `json:"epk,omitempty"`
}

// ephemeralKey is a JWK.
type ephemeralKey struct {
	Curve string `json:"crv"`
	Type  string `json:"kty"`
	X     string `json:"x"`
	Y     string `json:"y"`
}

// seal encrypts a resource for the guest. The error says nothing about the resource.
//
// The protected header is in canonical JSON: guests of Confidential Containers do not verify the header that they get but what they make
// of it, with its members in this order. go-jose has another order, so that they cannot open what it seals.
func (k *teeKey) seal(plain []byte) ([]byte, error) {
	cek := make([]byte, cekSize)
	rand.Read(cek)
	header := protectedHeader{Algorithm: k.algorithm, Encryption: jose.A256GCM}
	wrapped, err := k.wrap(cek, &header)
	if err != nil {
		return nil, err
	}
	raw, err := json.Marshal(header)
	if err != nil {
		return nil, fmt.Errorf("encode JWE header: %w", err)
	}
	if raw, err = kbs.Canonical(raw); err != nil {
		return nil, fmt.Errorf("encode JWE header: %w", err)
	}
	encode := base64.RawURLEncoding.EncodeToString
	protected := encode(raw)
	block, err := aes.NewCipher(cek)
	if err != nil {
		return nil, fmt.Errorf("prepare content key: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("prepare content key: %w", err)
	}
	iv := make([]byte, aead.NonceSize())
	rand.Read(iv)
	sealed := aead.Seal(nil, iv, plain, []byte(protected))
	tag := len(sealed) - aead.Overhead()
	return json.Marshal(sealedResource{
		Protected: protected, EncryptedKey: encode(wrapped), IV: encode(iv), Ciphertext: encode(sealed[:tag]), Tag: encode(sealed[tag:]),
	})
}

// wrap encrypts the content encryption key for the guest.
func (k *teeKey) wrap(cek []byte, header *protectedHeader) ([]byte, error) {
	switch public := k.public.(type) {
	case *ecdsa.PublicKey:
		return wrapECDH(public, cek, header)
	case *rsa.PublicKey:
		wrapped, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, public, cek, nil)
		if err != nil {
			return nil, fmt.Errorf("encrypt for guest key: %w", err)
		}
		return wrapped, nil
	}
	return nil, fmt.Errorf("guest key is neither EC nor RSA: %w", errdefs.ErrInternal)
}

// wrapECDH is ECDH-ES+A256KW (RFC 7518, section 4.6). It adds the ephemeral key to the header.
func wrapECDH(guest *ecdsa.PublicKey, cek []byte, header *protectedHeader) ([]byte, error) {
	public, err := guest.ECDH()
	if err != nil {
		return nil, fmt.Errorf("prepare guest key: %w", err)
	}
	ephemeral, err := public.Curve().GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make ephemeral key: %w", err)
	}
	shared, err := ephemeral.ECDH(public)
	if err != nil {
		return nil, fmt.Errorf("agree with guest key: %w", err)
	}
	algorithm := binary.BigEndian.AppendUint32(nil, uint32(len(header.Algorithm)))
	algorithm = append(algorithm, header.Algorithm...)
	party := make([]byte, 4) // of both sides nothing is said
	bits := binary.BigEndian.AppendUint32(nil, 8*cekSize)
	key := make([]byte, cekSize)
	if _, err := io.ReadFull(josecipher.NewConcatKDF(crypto.SHA256, shared, algorithm, party, party, bits, nil), key); err != nil {
		return nil, fmt.Errorf("derive wrapping key: %w", err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("prepare wrapping key: %w", err)
	}
	point := ephemeral.PublicKey().Bytes()[1:]
	half := len(point) / 2
	header.Ephemeral = &ephemeralKey{
		Curve: guest.Curve.Params().Name, Type: "EC",
		X: base64.RawURLEncoding.EncodeToString(point[:half]), Y: base64.RawURLEncoding.EncodeToString(point[half:]),
	}
	return josecipher.KeyWrap(block, cek)
}
