package sigstore

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"

	"github.com/containerd/errdefs"
)

// PublicKey is a key that signatures are checked with: ECDSA (P-256, P-384, P-521), Ed25519 or RSA from 2048 bits on.
type PublicKey struct {
	key crypto.PublicKey
	sum [sha256.Size]byte
}

// The sizes of RSA keys that are accepted, in bits. Larger ones only cost time.
const (
	minRSA = 2048
	maxRSA = 8192
)

// ParsePublicKey reads one public key in PEM, as cosign writes it. InvalidArgument: it is none, or more than one.
// NotImplemented: a kind of key that is not accepted.
func ParsePublicKey(text []byte) (*PublicKey, error) {
	if len(text) > maxKey {
		return nil, fmt.Errorf("public key of %d bytes, the limit is %d: %w", len(text), maxKey, errdefs.ErrInvalidArgument)
	}
	block, rest := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("public key is not PEM: %w", errdefs.ErrInvalidArgument)
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("public key is followed by something else; list further keys one by one: %w", errdefs.ErrInvalidArgument)
	}
	var (
		key crypto.PublicKey
		err error
	)
	switch block.Type {
	case "PUBLIC KEY":
		key, err = x509.ParsePKIXPublicKey(block.Bytes)
	case "RSA PUBLIC KEY":
		key, err = x509.ParsePKCS1PublicKey(block.Bytes)
	default:
		return nil, fmt.Errorf("PEM block %.40q is not a public key: %w", block.Type, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return nil, fmt.Errorf("public key cannot be parsed: %w", errdefs.ErrInvalidArgument)
	}
	return NewPublicKey(key)
}

// NewPublicKey takes a key of the standard library. NotImplemented: a kind of key that is not accepted.
func NewPublicKey(key crypto.PublicKey) (*PublicKey, error) {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() && k.Curve != elliptic.P521() {
			return nil, fmt.Errorf("ECDSA key on a curve other than P-256, P-384 and P-521: %w", errdefs.ErrNotImplemented)
		}
	case ed25519.PublicKey:
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); bits < minRSA || bits > maxRSA {
			return nil, fmt.Errorf("RSA key of %d bits, want %d to %d: %w", bits, minRSA, maxRSA, errdefs.ErrNotImplemented)
		}
	default:
		return nil, fmt.Errorf("public key is neither ECDSA nor Ed25519 nor RSA: %w", errdefs.ErrNotImplemented)
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode public key: %w", errdefs.ErrInvalidArgument)
	}
	return &PublicKey{key: key, sum: sha256.Sum256(der)}, nil
}

// ID is the SHA-256 of the key in PKIX form, by which people and logs name it.
func (k *PublicKey) ID() string { return "sha256:" + hex.EncodeToString(k.sum[:]) }

// Hint is the same as bundles have it.
func (k *PublicKey) Hint() string { return base64.StdEncoding.EncodeToString(k.sum[:]) }

// verify tells whether sig was made for message by the key. Where tools have used several hashes or encodings with one
// kind of key, all of them count: none of them is weaker than what the key promises.
func (k *PublicKey) verify(message, sig []byte) bool {
	switch key := k.key.(type) {
	case *ecdsa.PublicKey:
		for _, hash := range ecdsaHashes(key) {
			if ecdsa.VerifyASN1(key, sum(hash, message), sig) {
				return true
			}
		}
	case ed25519.PublicKey:
		if ed25519.Verify(key, message, sig) {
			return true
		}
		// cosign signs by Ed25519ph where a transparency log may be asked to store the hash alone.
		return ed25519.VerifyWithOptions(key, sum(crypto.SHA512, message), sig, &ed25519.Options{Hash: crypto.SHA512}) == nil
	case *rsa.PublicKey:
		hashed := sum(crypto.SHA256, message)
		return rsa.VerifyPKCS1v15(key, crypto.SHA256, hashed, sig) == nil ||
			rsa.VerifyPSS(key, crypto.SHA256, hashed, sig, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthAuto}) == nil
	}
	return false
}

// ecdsaHashes are the hash that goes with the curve, and SHA-256, which older tools use with every curve.
func ecdsaHashes(key *ecdsa.PublicKey) []crypto.Hash {
	switch key.Curve {
	case elliptic.P384():
		return []crypto.Hash{crypto.SHA384, crypto.SHA256}
	case elliptic.P521():
		return []crypto.Hash{crypto.SHA512, crypto.SHA256}
	default:
		return []crypto.Hash{crypto.SHA256}
	}
}

func sum(hash crypto.Hash, message []byte) []byte {
	switch hash {
	case crypto.SHA384:
		s := sha512.Sum384(message)
		return s[:]
	case crypto.SHA512:
		s := sha512.Sum512(message)
		return s[:]
	default:
		s := sha256.Sum256(message)
		return s[:]
	}
}
