package sign

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"

	"github.com/containerd/errdefs"
	"golang.org/x/crypto/nacl/secretbox"
	"golang.org/x/crypto/scrypt"
)

// The types of cosign's encrypted keys in PEM.
const (
	encryptedType    = "ENCRYPTED SIGSTORE PRIVATE KEY"
	oldEncryptedType = "ENCRYPTED COSIGN PRIVATE KEY"
)

// The way from a password to a key. The file says it, within these bounds: it may come from anywhere.
const (
	kdfName, cipherName     = "scrypt", "nacl/secretbox"
	scryptN, scryptR        = 65536, 8
	maxScryptN              = 1 << 20
	saltSize, boxKey, nonce = 32, 32, 24
)

// keyFile is what a PEM block of an encrypted key holds: JSON, with bytes in base64.
type keyFile struct {
	KDF struct {
		Name   string       `json:"name"`
		Params scryptParams `json:"params"`
		Salt   []byte       `json:"salt"`
	} `json:"kdf"`
	Cipher struct {
		Name  string `json:"name"`
		Nonce []byte `json:"nonce"`
	} `json:"cipher"`
	Ciphertext []byte `json:"ciphertext"`
}

type scryptParams struct {
	N int `json:"N"`
	R int `json:"r"`
	P int `json:"p"`
}

// Encode writes the key, encrypted with a password, as cosign does. An empty password protects nothing.
func (k *Key) Encode(password []byte) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k.private)
	if err != nil {
		return nil, fmt.Errorf("encode private key: %w", err)
	}
	var f keyFile
	f.KDF.Name, f.KDF.Params, f.KDF.Salt = kdfName, scryptParams{scryptN, scryptR, 1}, make([]byte, saltSize)
	f.Cipher.Name, f.Cipher.Nonce = cipherName, make([]byte, nonce)
	rand.Read(f.KDF.Salt)
	rand.Read(f.Cipher.Nonce)
	key, err := f.derive(password)
	if err != nil {
		return nil, err
	}
	f.Ciphertext = secretbox.Seal(nil, der, (*[nonce]byte)(f.Cipher.Nonce), key)
	raw, err := json.Marshal(f)
	if err != nil {
		return nil, fmt.Errorf("encode private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: encryptedType, Bytes: raw}), nil
}

func (f *keyFile) derive(password []byte) (*[boxKey]byte, error) {
	raw, err := scrypt.Key(password, f.KDF.Salt, f.KDF.Params.N, f.KDF.Params.R, f.KDF.Params.P, boxKey)
	if err != nil {
		return nil, fmt.Errorf("derive key from password: %w", errdefs.ErrInvalidArgument)
	}
	return (*[boxKey]byte)(raw), nil
}

// decrypt opens an encrypted key.
func decrypt(raw, password []byte) ([]byte, error) {
	var f keyFile
	if err := json.Unmarshal(raw, &f); err != nil {
		return nil, fmt.Errorf("encrypted private key is malformed: %w", errdefs.ErrInvalidArgument)
	}
	p := f.KDF.Params
	if f.KDF.Name != kdfName || f.Cipher.Name != cipherName || len(f.Cipher.Nonce) != nonce || len(f.KDF.Salt) == 0 ||
		p.N < 2 || p.N > maxScryptN || p.R != scryptR || p.P != 1 {
		return nil, fmt.Errorf("private key is encrypted in a way that is not supported: %w", errdefs.ErrNotImplemented)
	}
	key, err := f.derive(password)
	if err != nil {
		return nil, err
	}
	der, ok := secretbox.Open(nil, f.Ciphertext, (*[nonce]byte)(f.Cipher.Nonce), key)
	if !ok {
		return nil, fmt.Errorf("private key does not open: the password is wrong: %w", errdefs.ErrPermissionDenied)
	}
	return der, nil
}
