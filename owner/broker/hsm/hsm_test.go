//go:build pkcs11

package hsm

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/miekg/pkcs11"

	"github.com/coffer-project/coffer/owner/broker/store"
	"github.com/coffer-project/coffer/owner/broker/store/files"
)

// softHSM returns the library of SoftHSM, a token in software. Who builds these tests wants them run, so its absence is a failure.
func softHSM(t *testing.T) string {
	t.Helper()
	for _, name := range []string{os.Getenv("SOFTHSM2_LIBRARY"), "/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so"} {
		if name == "" {
			continue
		}
		if _, err := os.Stat(name); err == nil {
			return name
		}
	}
	t.Fatal("no SoftHSM: install softhsm2, or set SOFTHSM2_LIBRARY to its libsofthsm2.so")
	return ""
}

const (
	userPIN  = "1234"
	adminPIN = "5678"
)

// newToken makes a token with AES keys of these labels and returns the beginning and the end of their URIs.
func newToken(t *testing.T, labels ...string) (head, tail string) {
	t.Helper()
	library, dir := softHSM(t), t.TempDir()
	tokens := filepath.Join(dir, "tokens")
	fatal := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	fatal(os.Mkdir(tokens, 0o700))
	conf, pin := filepath.Join(dir, "softhsm2.conf"), filepath.Join(dir, "pin")
	fatal(os.WriteFile(conf, []byte("directories.tokendir = "+tokens+"\nobjectstore.backend = file\nlog.level = ERROR\n"), 0o600))
	fatal(os.WriteFile(pin, []byte(userPIN), 0o600))
	t.Setenv("SOFTHSM2_CONF", conf)
	c := pkcs11.New(library)
	if c == nil {
		t.Fatal("the library cannot be loaded")
	}
	defer c.Destroy()
	fatal(c.Initialize())
	defer func() { fatal(c.Finalize()) }()
	slots, err := c.GetSlotList(true)
	fatal(err)
	fatal(c.InitToken(slots[0], adminPIN, "coffer"))
	if slots, err = c.GetSlotList(true); err != nil { // the token has a slot of its own now
		t.Fatal(err)
	}
	session, err := c.OpenSession(slots[0], pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	fatal(err)
	fatal(c.Login(session, pkcs11.CKU_SO, adminPIN))
	fatal(c.InitPIN(session, userPIN))
	fatal(c.Logout(session))
	fatal(c.Login(session, pkcs11.CKU_USER, userPIN))
	for _, label := range labels {
		_, err := c.GenerateKey(session, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)}, []*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_LABEL, label), pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, 32),
			pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true), pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, false),
			pkcs11.NewAttribute(pkcs11.CKA_ENCRYPT, true), pkcs11.NewAttribute(pkcs11.CKA_DECRYPT, true),
		})
		fatal(err)
	}
	return "pkcs11:token=coffer;object=", fmt.Sprintf("?module-path=%s&pin-source=file:%s", library, pin)
}

func TestKey(t *testing.T) {
	head, tail := newToken(t, "master", "other", "twice", "twice")
	open := func(label string) *Key {
		t.Helper()
		key, err := Open(head + label + tail)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	master := open("master")
	secret := []byte("thirty-two bytes of key material")
	wrapped, err := master.Wrap(secret)
	if err != nil || bytes.Contains(wrapped, secret) {
		t.Fatalf("%q, %v", wrapped, err)
	}
	if got, err := master.Unwrap(wrapped); err != nil || !bytes.Equal(got, secret) {
		t.Errorf("%q, %v", got, err)
	}
	flipped := bytes.Clone(wrapped)
	flipped[len(flipped)/2] ^= 1
	for name, tc := range map[string]struct {
		key     *Key
		wrapped []byte
		want    error
	}{
		"flipped":      {master, flipped, errdefs.ErrFailedPrecondition},
		"short":        {master, wrapped[:10], errdefs.ErrFailedPrecondition},
		"other key":    {open("other"), wrapped, errdefs.ErrFailedPrecondition},
		"missing key":  {open("none"), wrapped, errdefs.ErrNotFound},
		"ambiguous":    {open("twice"), wrapped, errdefs.ErrNotFound},
		"other token":  {&Key{module: master.module, token: "none", label: "master", pin: userPIN}, wrapped, errdefs.ErrNotFound},
		"wrong PIN":    {&Key{module: master.module, token: "coffer", label: "master", pin: "0000"}, wrapped, errdefs.ErrPermissionDenied},
		"wrong module": {&Key{module: "/bin/true", token: "coffer", label: "master", pin: userPIN}, wrapped, errdefs.ErrFailedPrecondition},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := tc.key.Unwrap(tc.wrapped); !errors.Is(err, tc.want) || got != nil {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}

// A store sealed by the HSM opens again with it, and moves to another key.
func TestSealedStore(t *testing.T) {
	head, tail := newToken(t, "master")
	key, err := Open(head + "master" + tail)
	if err != nil {
		t.Fatal(err)
	}
	inner, err := files.Open(filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Close()
	for round := range 2 {
		s, err := store.Sealed(t.Context(), inner, key)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := s.Get(t.Context(), "resource/a/b/c"); round == 1 && (err != nil || string(got) != "x") {
			t.Errorf("%q, %v", got, err)
		}
		if err := s.Put(t.Context(), "resource/a/b/c", []byte("x")); err != nil {
			t.Error(err)
		}
	}
	file, err := store.NewMasterKey(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Rewrap(t.Context(), inner, key, file); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Sealed(t.Context(), inner, key); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("old key: %v", err)
	}
	if _, err := store.Sealed(t.Context(), inner, file); err != nil {
		t.Error(err)
	}
}

func TestOpenRefuses(t *testing.T) {
	_, tail := newToken(t)
	for name, uri := range map[string]string{
		"scheme": "file:x", "no token": "pkcs11:object=a" + tail, "no object": "pkcs11:token=a" + tail, "no module": "pkcs11:token=a;object=b?pin-value=1",
		"no PIN": "pkcs11:token=a;object=b?module-path=" + softHSM(t) + "&pin-source=file:/nonexistent",
	} {
		if _, err := Open(uri); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
