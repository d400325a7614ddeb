package store

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"fmt"

	"github.com/containerd/errdefs"
)

// keyring is where the data key lies, wrapped by the master key.
const keyring = KindKey + "/data"

// sealedV1 begins each sealed value. It is followed by the nonce and by what AES-256-GCM made of the value, with the name as additional
// data: a value that was moved to another name does not open.
const sealedV1 = "cks1"

// Wrapper is a master key: it encrypts the store's data key and nothing else, so an HSM is asked once per start.
type Wrapper interface {
	// Wrap encrypts and authenticates.
	Wrap(plain []byte) ([]byte, error)
	// Unwrap reverses Wrap. FailedPrecondition for what another key wrapped.
	Unwrap(wrapped []byte) ([]byte, error)
}

// sealedStore encrypts values on their way to inner.
type sealedStore struct {
	Store
	aead cipher.AEAD
}

// Sealed returns a Store that keeps its values in inner, encrypted with a data key that master wraps. The data key is made at the first
// use; instances that begin at once agree on one. FailedPrecondition where another master key was used before. Old values that an
// attacker puts back are not noticed.
func Sealed(ctx context.Context, inner Store, master Wrapper) (Store, error) {
	wrapped, err := inner.Get(ctx, keyring)
	if errdefs.IsNotFound(err) {
		wrapped, err = newKeyring(ctx, inner, master)
	}
	if err != nil {
		return nil, fmt.Errorf("read the store's data key: %w", err)
	}
	key, err := master.Unwrap(wrapped)
	if err != nil {
		return nil, fmt.Errorf("unwrap the store's data key: %w", err)
	}
	aead, err := newGCM(key)
	if err != nil {
		return nil, fmt.Errorf("the store's data key: %w", err)
	}
	return &sealedStore{Store: inner, aead: aead}, nil
}

func newKeyring(ctx context.Context, inner Store, master Wrapper) ([]byte, error) {
	key := make([]byte, 32)
	rand.Read(key)
	wrapped, err := master.Wrap(key)
	if err != nil {
		return nil, err
	}
	err = inner.Create(ctx, keyring, wrapped)
	if errdefs.IsAlreadyExists(err) {
		return inner.Get(ctx, keyring)
	}
	return wrapped, err
}

// Rewrap replaces the master key of a store: the data key and all values stay. Instances that run go on.
func Rewrap(ctx context.Context, inner Store, old, fresh Wrapper) error {
	wrapped, err := inner.Get(ctx, keyring)
	if err != nil {
		return fmt.Errorf("read the store's data key: %w", err)
	}
	key, err := old.Unwrap(wrapped)
	if err != nil {
		return fmt.Errorf("unwrap the store's data key: %w", err)
	}
	if wrapped, err = fresh.Wrap(key); err != nil {
		return fmt.Errorf("wrap the store's data key: %w", err)
	}
	return inner.Put(ctx, keyring, wrapped)
}

// Get implements Store. A value that was changed, moved or never sealed is FailedPrecondition.
func (s *sealedStore) Get(ctx context.Context, name string) ([]byte, error) {
	sealed, err := s.Store.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	plain, err := open(s.aead, sealed, name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return plain, nil
}

// Put implements Store.
func (s *sealedStore) Put(ctx context.Context, name string, data []byte) error {
	if err := CheckValue(name, data); err != nil {
		return err
	}
	return s.Store.Put(ctx, name, seal(s.aead, data, name))
}

// Create implements Store.
func (s *sealedStore) Create(ctx context.Context, name string, data []byte) error {
	if err := CheckValue(name, data); err != nil {
		return err
	}
	return s.Store.Create(ctx, name, seal(s.aead, data, name))
}

// masterKey is a Wrapper whose key is in memory.
type masterKey struct{ aead cipher.AEAD }

// NewMasterKey returns a Wrapper for 32 random bytes.
func NewMasterKey(key []byte) (Wrapper, error) {
	aead, err := newGCM(key)
	if err != nil {
		return nil, fmt.Errorf("master key: %w", err)
	}
	return &masterKey{aead: aead}, nil
}

// Wrap implements Wrapper.
func (m *masterKey) Wrap(plain []byte) ([]byte, error) { return seal(m.aead, plain, keyring), nil }

// Unwrap implements Wrapper.
func (m *masterKey) Unwrap(wrapped []byte) ([]byte, error) { return open(m.aead, wrapped, keyring) }

func newGCM(key []byte) (cipher.AEAD, error) {
	if len(key) != 32 {
		return nil, fmt.Errorf("it has %d bytes, want 32: %w", len(key), errdefs.ErrInvalidArgument)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

func seal(aead cipher.AEAD, plain []byte, name string) []byte {
	out := make([]byte, len(sealedV1)+aead.NonceSize(), len(sealedV1)+aead.NonceSize()+len(plain)+aead.Overhead())
	copy(out, sealedV1)
	nonce := out[len(sealedV1):]
	rand.Read(nonce)
	return aead.Seal(out, nonce, plain, []byte(name))
}

func open(aead cipher.AEAD, sealed []byte, name string) ([]byte, error) {
	head := len(sealedV1) + aead.NonceSize()
	if len(sealed) < head || string(sealed[:len(sealedV1)]) != sealedV1 {
		return nil, fmt.Errorf("value is not sealed: was it stored without a master key? %w", errdefs.ErrFailedPrecondition)
	}
	plain, err := aead.Open(nil, sealed[len(sealedV1):head], sealed[head:], []byte(name))
	if err != nil {
		return nil, fmt.Errorf("value was sealed with another key, or was changed: %w", errdefs.ErrFailedPrecondition)
	}
	return plain, nil
}
