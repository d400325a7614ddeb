//go:build pkcs11

package hsm

import (
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/miekg/pkcs11"
	pkcs11uri "github.com/stefanberger/go-pkcs11uri"
)

// Sizes of AES-GCM: its nonce in bytes, its tag in bits.
const (
	nonceSize = 12
	tagBits   = 128
)

// purpose is authenticated with what is wrapped, so that nothing else that the key encrypted passes for a data key.
var purpose = []byte("coffer-kbs data key v1")

// Key is a master key in an HSM. It implements store.Wrapper. Each call logs in and out again: it is used once per start.
type Key struct {
	module, token, label, pin string
}

// Open parses a URI (RFC 7512) that names the key: pkcs11:token=NAME;object=LABEL?module-path=LIBRARY&pin-source=FILE. It does not connect.
// Faults are InvalidArgument.
func Open(uri string) (*Key, error) {
	bad := func(reason string) (*Key, error) {
		return nil, fmt.Errorf("key URI: %s, want pkcs11:token=NAME;object=LABEL?module-path=LIBRARY&pin-source=FILE: %w", reason, errdefs.ErrInvalidArgument)
	}
	parsed := pkcs11uri.New()
	if err := parsed.Parse(uri); err != nil {
		return bad("it is malformed")
	}
	parsed.SetAllowAnyModule(true) // the configuration is the admin's own
	k := &Key{}
	var ok bool
	if k.token, ok = parsed.GetPathAttribute("token", false); !ok || k.token == "" {
		return bad("it has no token")
	}
	if k.label, ok = parsed.GetPathAttribute("object", false); !ok || k.label == "" {
		return bad("it has no object")
	}
	var err error
	if k.module, err = parsed.GetModule(); err != nil {
		return bad("its module-path is missing or no file")
	}
	if k.pin, err = parsed.GetPIN(); err != nil {
		return bad("its PIN cannot be read")
	}
	return k, nil
}

// Wrap implements store.Wrapper.
func (k *Key) Wrap(plain []byte) (wrapped []byte, err error) {
	nonce := make([]byte, nonceSize)
	rand.Read(nonce)
	err = k.with(nonce, func(c *pkcs11.Ctx, session pkcs11.SessionHandle, key pkcs11.ObjectHandle, mechanism []*pkcs11.Mechanism) error {
		if err := c.EncryptInit(session, mechanism, key); err != nil {
			return fmt.Errorf("begin encryption in the HSM: %w", err)
		}
		sealed, err := c.Encrypt(session, plain)
		if err != nil {
			return fmt.Errorf("encrypt in the HSM: %w", err)
		}
		wrapped = append(nonce, sealed...)
		return nil
	})
	return wrapped, err
}

// Unwrap implements store.Wrapper.
func (k *Key) Unwrap(wrapped []byte) (plain []byte, err error) {
	if len(wrapped) <= nonceSize+tagBits/8 {
		return nil, fmt.Errorf("wrapped key is too short: %w", errdefs.ErrFailedPrecondition)
	}
	err = k.with(wrapped[:nonceSize], func(c *pkcs11.Ctx, session pkcs11.SessionHandle, key pkcs11.ObjectHandle, mechanism []*pkcs11.Mechanism) error {
		if err := c.DecryptInit(session, mechanism, key); err != nil {
			return fmt.Errorf("begin decryption in the HSM: %w", err)
		}
		if plain, err = c.Decrypt(session, wrapped[nonceSize:]); err != nil {
			return fmt.Errorf("the HSM's key did not wrap this, or it was changed: %w: %w", err, errdefs.ErrFailedPrecondition)
		}
		return nil
	})
	return plain, err
}

// with opens a session, logs in, finds the key, runs work with AES-GCM over nonce, and closes everything again.
func (k *Key) with(nonce []byte, work func(*pkcs11.Ctx, pkcs11.SessionHandle, pkcs11.ObjectHandle, []*pkcs11.Mechanism) error) (retErr error) {
	c := pkcs11.New(k.module)
	if c == nil {
		return fmt.Errorf("PKCS #11 library %s cannot be loaded: %w", k.module, errdefs.ErrFailedPrecondition)
	}
	defer c.Destroy()
	if err := c.Initialize(); err != nil {
		return fmt.Errorf("start the HSM's library %s: %w: %w", k.module, err, errdefs.ErrUnavailable)
	}
	defer func() { retErr = errors.Join(retErr, c.Finalize()) }()
	slot, err := k.slot(c)
	if err != nil {
		return err
	}
	session, err := c.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION)
	if err != nil {
		return fmt.Errorf("open a session of the HSM: %w: %w", err, errdefs.ErrUnavailable)
	}
	defer func() { retErr = errors.Join(retErr, c.CloseSession(session)) }()
	if err := c.Login(session, pkcs11.CKU_USER, k.pin); err != nil {
		return fmt.Errorf("log in to the token %s of the HSM: %w: %w", k.token, err, errdefs.ErrPermissionDenied)
	}
	defer func() { retErr = errors.Join(retErr, c.Logout(session)) }()
	key, err := k.find(c, session)
	if err != nil {
		return err
	}
	params := pkcs11.NewGCMParams(nonce, purpose, tagBits)
	defer params.Free()
	return work(c, session, key, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_GCM, params)})
}

// slot returns the slot of the token.
func (k *Key) slot(c *pkcs11.Ctx) (uint, error) {
	slots, err := c.GetSlotList(true)
	if err != nil {
		return 0, fmt.Errorf("list the HSM's tokens: %w: %w", err, errdefs.ErrUnavailable)
	}
	for _, slot := range slots {
		if info, err := c.GetTokenInfo(slot); err == nil && info.Label == k.token {
			return slot, nil
		}
	}
	return 0, fmt.Errorf("the HSM has no token %s: %w", k.token, errdefs.ErrNotFound)
}

// find returns the one AES key with the label.
func (k *Key) find(c *pkcs11.Ctx, session pkcs11.SessionHandle) (_ pkcs11.ObjectHandle, retErr error) {
	err := c.FindObjectsInit(session, []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, k.label),
	})
	if err != nil {
		return 0, fmt.Errorf("look for the key in the HSM: %w", err)
	}
	defer func() { retErr = errors.Join(retErr, c.FindObjectsFinal(session)) }()
	found, _, err := c.FindObjects(session, 2)
	if err != nil {
		return 0, fmt.Errorf("look for the key in the HSM: %w", err)
	}
	if len(found) != 1 {
		return 0, fmt.Errorf("the token %s has %d AES keys labelled %s, want one: %w", k.token, len(found), k.label, errdefs.ErrNotFound)
	}
	return found[0], nil
}
