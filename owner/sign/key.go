package sign

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/pem"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/sigstore"
)

// Key signs images.
type Key struct {
	private crypto.Signer
	public  *sigstore.PublicKey
}

// Kinds are the kinds of keys that Generate makes; the first is cosign's.
var Kinds = []string{"ecdsa-p256", "ecdsa-p384", "ed25519", "rsa-3072"}

// Generate makes a new key. InvalidArgument: an unknown kind.
func Generate(kind string) (*Key, error) {
	var (
		private crypto.Signer
		err     error
	)
	switch kind {
	case "ecdsa-p256":
		private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ecdsa-p384":
		private, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "ed25519":
		_, private, err = ed25519.GenerateKey(rand.Reader)
	case "rsa-3072":
		private, err = rsa.GenerateKey(rand.Reader, 3072)
	default:
		return nil, fmt.Errorf("kind of key %q is none of %q: %w", kind, Kinds, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return nil, fmt.Errorf("generate key: %w", err)
	}
	return newKey(private)
}

func newKey(private crypto.PrivateKey) (*Key, error) {
	signer, ok := private.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("this kind of private key makes no signatures: %w", errdefs.ErrInvalidArgument)
	}
	public, err := sigstore.NewPublicKey(signer.Public())
	if err != nil {
		return nil, err
	}
	return &Key{private: signer, public: public}, nil
}

// ParseKey reads a private key in PEM: an encrypted one as cosign and Encode write it, which needs its password, or a
// plain one in PKCS #8, SEC 1 or PKCS #1. InvalidArgument: it is none. PermissionDenied: the password is wrong.
func ParseKey(text, password []byte) (*Key, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("private key is not PEM: %w", errdefs.ErrInvalidArgument)
	}
	der := block.Bytes
	var (
		private crypto.PrivateKey
		err     error
	)
	switch block.Type {
	case encryptedType, oldEncryptedType:
		if der, err = decrypt(block.Bytes, password); err != nil {
			return nil, err
		}
		private, err = x509.ParsePKCS8PrivateKey(der)
	case "PRIVATE KEY":
		private, err = x509.ParsePKCS8PrivateKey(der)
	case "EC PRIVATE KEY":
		private, err = x509.ParseECPrivateKey(der)
	case "RSA PRIVATE KEY":
		private, err = x509.ParsePKCS1PrivateKey(der)
	default:
		return nil, fmt.Errorf("PEM block %.40q is no private key that can be read: %w", block.Type, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return nil, fmt.Errorf("private key cannot be parsed: %w", errdefs.ErrInvalidArgument)
	}
	return newKey(private)
}

// Public is the key that checks what this key signs.
func (k *Key) Public() *sigstore.PublicKey { return k.public }

// EncodePublic writes the public key in PEM.
func (k *Key) EncodePublic() ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(k.private.Public())
	if err != nil {
		return nil, fmt.Errorf("encode public key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), nil
}

// signPayload signs as all who read simple signing expect: with SHA-256, whatever the curve.
func (k *Key) signPayload(message []byte) ([]byte, error) { return k.sign(message, crypto.SHA256) }

// SignStatement signs the body of a statement for a bundle, as all who read bundles expect: with the hash that goes with
// the key.
func (k *Key) SignStatement(body []byte) ([]byte, error) {
	message := sigstore.StatementMessage(body)
	if key, ok := k.private.Public().(*ecdsa.PublicKey); ok && key.Curve == elliptic.P384() {
		return k.sign(message, crypto.SHA384)
	}
	if key, ok := k.private.Public().(*ecdsa.PublicKey); ok && key.Curve == elliptic.P521() {
		return k.sign(message, crypto.SHA512)
	}
	return k.sign(message, crypto.SHA256)
}

// SignDigest signs the SHA-256 digest of a message with an ECDSA key on P-256, in ASN.1. InvalidArgument: the key is another.
func (k *Key) SignDigest(digest []byte) ([]byte, error) {
	if key, ok := k.private.Public().(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("the key is not of ECDSA on P-256 (kind %s): %w", Kinds[0], errdefs.ErrInvalidArgument)
	}
	sig, err := k.private.Sign(rand.Reader, digest, crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	return sig, nil
}

func (k *Key) sign(message []byte, hash crypto.Hash) ([]byte, error) {
	hashed := message
	switch {
	case isEd25519(k.private):
		hash = 0 // it takes the message itself
	case hash == crypto.SHA384:
		sum := sha512.Sum384(message)
		hashed = sum[:]
	case hash == crypto.SHA512:
		sum := sha512.Sum512(message)
		hashed = sum[:]
	default:
		sum := sha256.Sum256(message)
		hashed = sum[:]
	}
	sig, err := k.private.Sign(rand.Reader, hashed, hash)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	return sig, nil
}

func isEd25519(key crypto.Signer) bool {
	_, ok := key.(ed25519.PrivateKey)
	return ok
}
