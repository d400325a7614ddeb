// Package keys makes and reads the keys of a broker and its admins, in PEM: PKCS #8 for private keys, PKIX for public ones, which is
// what openssl and Trustee use.
package keys

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
)

const (
	privateType = "PRIVATE KEY"
	publicType  = "PUBLIC KEY"
	certType    = "CERTIFICATE"
	masterType  = "COFFER MASTER KEY"
)

const masterSize = 32 // bytes

// NewAdmin returns a new Ed25519 key pair.
func NewAdmin() (private, public []byte, err error) {
	publicKey, privateKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("generate admin key: %w", err)
	}
	if private, err = EncodeAdminPrivate(privateKey); err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(publicKey)
	if err != nil {
		return nil, nil, fmt.Errorf("encode admin key: %w", err)
	}
	return private, pem.EncodeToMemory(&pem.Block{Type: publicType, Bytes: der}), nil
}

// EncodeAdminPrivate writes an Ed25519 private key.
func EncodeAdminPrivate(key ed25519.PrivateKey) ([]byte, error) { return encodePrivate(key) }

// NewToken returns a new P-256 key for signing tokens.
func NewToken() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate token key: %w", err)
	}
	return encodePrivate(key)
}

func encodePrivate(key any) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: privateType, Bytes: der}), nil
}

// ParseAdminPrivate reads an Ed25519 private key.
func ParseAdminPrivate(raw []byte) (ed25519.PrivateKey, error) {
	key, err := parsePrivate(raw)
	if err != nil {
		return nil, fmt.Errorf("admin key: %w", err)
	}
	private, ok := key.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("admin key is no Ed25519 key: %w", errdefs.ErrInvalidArgument)
	}
	return private, nil
}

// ParseAdminPublic reads an Ed25519 public key.
func ParseAdminPublic(raw []byte) (ed25519.PublicKey, error) {
	block, _ := pem.Decode(raw)
	if block == nil || block.Type != publicType {
		return nil, fmt.Errorf("admin public key is not in PEM with the type %s: %w", publicType, errdefs.ErrInvalidArgument)
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("admin public key cannot be parsed: %w", errdefs.ErrInvalidArgument)
	}
	public, ok := key.(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf("admin public key is no Ed25519 key: %w", errdefs.ErrInvalidArgument)
	}
	return public, nil
}

// ParseToken reads a P-256 private key.
func ParseToken(raw []byte) (*ecdsa.PrivateKey, error) {
	key, err := parsePrivate(raw)
	if err != nil {
		return nil, fmt.Errorf("token key: %w", err)
	}
	private, ok := key.(*ecdsa.PrivateKey)
	if !ok || private.Curve != elliptic.P256() {
		return nil, fmt.Errorf("token key is not an EC key on P-256: %w", errdefs.ErrInvalidArgument)
	}
	return private, nil
}

// parsePrivate accepts PKCS #8 and, for the EC keys of older tools, SEC 1. Its errors never show what was read.
func parsePrivate(raw []byte) (any, error) {
	for {
		var block *pem.Block
		block, raw = pem.Decode(raw)
		if block == nil {
			return nil, fmt.Errorf("no PEM private key: %w", errdefs.ErrInvalidArgument)
		}
		switch block.Type {
		case privateType:
			key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("private key cannot be parsed: %w", errdefs.ErrInvalidArgument)
			}
			return key, nil
		case "EC PRIVATE KEY":
			key, err := x509.ParseECPrivateKey(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("private key cannot be parsed: %w", errdefs.ErrInvalidArgument)
			}
			return key, nil
		}
	}
}

// ParseChain reads one or more certificates, the owner's first.
func ParseChain(raw []byte) ([]*x509.Certificate, error) {
	var chain []*x509.Certificate
	for {
		var block *pem.Block
		block, raw = pem.Decode(raw)
		if block == nil {
			break
		}
		if block.Type != certType {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d cannot be parsed: %w", len(chain)+1, errdefs.ErrInvalidArgument)
		}
		chain = append(chain, cert)
	}
	if len(chain) == 0 {
		return nil, fmt.Errorf("no PEM certificate: %w", errdefs.ErrInvalidArgument)
	}
	return chain, nil
}

// NewMaster returns a new master key of a store.
func NewMaster() []byte {
	key := make([]byte, masterSize)
	rand.Read(key)
	return pem.EncodeToMemory(&pem.Block{Type: masterType, Bytes: key})
}

// ParseMaster reads a master key.
func ParseMaster(raw []byte) ([]byte, error) {
	block, _ := pem.Decode(raw)
	if block == nil || block.Type != masterType || len(block.Bytes) != masterSize {
		return nil, fmt.Errorf("master key is not in PEM with the type %s: %w", masterType, errdefs.ErrInvalidArgument)
	}
	return block.Bytes, nil
}

// Session derives the key that seals sessions from the token key, so that brokers which share the one share the other.
func Session(token *ecdsa.PrivateKey) ([]byte, error) {
	secret, err := token.Bytes()
	if err != nil {
		return nil, fmt.Errorf("derive session key: %w", err)
	}
	key, err := hkdf.Key(sha256.New, secret, nil, "coffer-kbs session cookie", 32)
	if err != nil {
		return nil, fmt.Errorf("derive session key: %w", err)
	}
	return key, nil
}

// WriteNew writes a file that must not exist yet, so that no key is ever lost to a second run. An existing one is AlreadyExists.
func WriteNew(name string, data []byte, mode os.FileMode) (retErr error) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%s exists already, move it away first: %w", name, errdefs.ErrAlreadyExists)
	}
	if err != nil {
		return fmt.Errorf("create key file: %w", err)
	}
	defer func() {
		if err := f.Close(); retErr == nil && err != nil {
			retErr = fmt.Errorf("write key file: %w", err)
		}
		if retErr != nil {
			retErr = errors.Join(retErr, os.Remove(name))
		}
	}()
	if _, err := f.Write(data); err != nil {
		return fmt.Errorf("write key file: %w", err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("write key file: %w", err)
	}
	return nil
}
