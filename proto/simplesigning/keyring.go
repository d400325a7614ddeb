package simplesigning

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	pgperrors "github.com/ProtonMail/go-crypto/openpgp/errors"
	pgppacket "github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"
	"github.com/containerd/errdefs"
)

// Keyring is a set of public keys, any of which may have signed. It is safe for concurrent use.
type Keyring struct {
	mu   sync.Mutex // the library remembers in the keys what it has checked of them
	list openpgp.EntityList
}

// ParseKeyring reads public keys as gpg --export writes them, with or without --armor. InvalidArgument: they are none.
func ParseKeyring(raw []byte) (*Keyring, error) {
	if len(raw) > maxRing {
		return nil, fmt.Errorf("keyring of %d bytes, the limit is %d: %w", len(raw), maxRing, errdefs.ErrInvalidArgument)
	}
	read := openpgp.ReadKeyRing
	if text := bytes.TrimSpace(raw); bytes.HasPrefix(text, []byte("-----BEGIN ")) {
		read, raw = openpgp.ReadArmoredKeyRing, text
	}
	list, err := read(bytes.NewReader(raw))
	switch {
	case err != nil || len(list) == 0:
		return nil, fmt.Errorf("it is no OpenPGP keyring with a key that can be used; write it with gpg --export KEY: %w", errdefs.ErrInvalidArgument)
	case len(list) > maxKeys:
		return nil, fmt.Errorf("keyring of %d keys, the limit is %d: %w", len(list), maxKeys, errdefs.ErrInvalidArgument)
	}
	for _, e := range list {
		if secret(e) {
			return nil, fmt.Errorf("keyring has the secret key of %s; write it with gpg --export KEY, and give that key up: %w", fingerprint(e), errdefs.ErrInvalidArgument)
		}
	}
	return &Keyring{list: list}, nil
}

func secret(e *openpgp.Entity) bool {
	for _, sub := range e.Subkeys {
		if sub.PrivateKey != nil {
			return true
		}
	}
	return e.PrivateKey != nil
}

// fingerprint is how gpg writes it, of the primary key.
func fingerprint(e *openpgp.Entity) string {
	return strings.ToUpper(hex.EncodeToString(e.PrimaryKey.Fingerprint))
}

// String names the keys by their fingerprints, the first few of them.
func (k *Keyring) String() string {
	const shown = 4
	var names []string
	for i, e := range k.list {
		if i == shown {
			names = append(names, fmt.Sprintf("%d more", len(k.list)-shown))
			break
		}
		names = append(names, fingerprint(e))
	}
	return strings.Join(names, " or ")
}

// verify tells which key has signed a message, and that it was good then and is now. Where a ring has several copies of the
// key, all of them must say so: one may know that the key was revoked. NotFound: no key of the ring has.
func (k *Keyring) verify(m *message) (string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	found := ""
	for _, e := range k.list {
		err := verify(e, m)
		switch {
		case errors.Is(err, pgperrors.ErrUnknownIssuer):
			continue
		case err != nil:
			return "", fmt.Errorf("key %s: %w: %w", fingerprint(e), err, errdefs.ErrPermissionDenied)
		case found == "":
			found = fingerprint(e)
		}
	}
	if found == "" {
		return "", fmt.Errorf("it was not made with the policy's key: %w", errdefs.ErrNotFound)
	}
	return found, nil
}

// verify checks a signature by one key and its subkeys. The library judges keys by the time that the signature gives
// itself, which whoever has found an old key can choose: they must be good at this time, too.
func verify(e *openpgp.Entity, m *message) error {
	config := &pgppacket.Config{}
	md, err := openpgp.VerifyDetachedSignatureReader(openpgp.EntityList{e}, bytes.NewReader(m.text), bytes.NewReader(m.signature), config)
	if err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, md.UnverifiedBody); err != nil {
		return err
	}
	switch {
	case md.SignatureError != nil:
		return md.SignatureError
	case !md.IsVerified || md.Signature == nil || md.SignedBy == nil:
		return errors.New("the signature was not checked")
	}
	now := config.Now()
	if _, err := e.VerifyPrimaryKey(now, config); err != nil {
		return err
	}
	for i := range e.Subkeys {
		if sub := &e.Subkeys[i]; sub.PublicKey == md.SignedBy.PublicKey {
			_, err := sub.Verify(now, config)
			return err
		}
	}
	return nil
}
