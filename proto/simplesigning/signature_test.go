package simplesigning_test

import (
	"bytes"
	"compress/flate"
	"compress/zlib"
	"crypto"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/coffer-project/coffer/integration/pgptest"
	"github.com/coffer-project/coffer/proto/sigstore"
	"github.com/coffer-project/coffer/proto/simplesigning"
)

var claim = sigstore.Claim{Digest: digest.FromString("an image"), Identity: "a.example/b:1"}

func text() []byte { return pgptest.Text(claim.Digest, claim.Identity) }

func cat(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// compressed is a packet as gpg writes it: in the older form, without a length.
func compressed(t *testing.T, algorithm byte, raw []byte) []byte {
	t.Helper()
	out := bytes.NewBuffer([]byte{0xa3, algorithm})
	w := io.WriteCloser(zlib.NewWriter(out))
	if algorithm != 2 {
		var err error
		if w, err = flate.NewWriter(out, 6); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Write(raw); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func ring(tb testing.TB, keys ...*pgptest.Key) *simplesigning.Keyring {
	tb.Helper()
	var raw []byte
	for _, key := range keys {
		raw = append(raw, key.Public(tb)...)
	}
	k, err := simplesigning.ParseKeyring(raw)
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

// TestForms: what may be made of one message, and what may not.
func TestForms(t *testing.T) {
	key, other := pgptest.NewKey(t, nil), pgptest.NewKey(t, nil)
	m := key.Sign(t, text(), pgptest.Options{})
	second := other.Sign(t, text(), pgptest.Options{})
	whole := m.Whole()
	evil := pgptest.Literal(t, bytes.Replace(text(), []byte("a.example"), []byte("b.example"), 1))
	bomb := cat(m.OnePass, pgptest.Literal(t, make([]byte, 1<<24)), m.Signature)
	for name, tc := range map[string]struct {
		raw  []byte
		word string
		want error
	}{
		"plain":                {whole, "", nil},
		"zip":                  {compressed(t, 1, whole), "", nil},
		"zlib":                 {compressed(t, 2, whole), "", nil},
		"bzip2":                {compressed(t, 3, whole), "algorithm 3", errdefs.ErrNotImplemented},
		"compressed twice":     {compressed(t, 1, compressed(t, 1, whole)), "more than once", errdefs.ErrInvalidArgument},
		"compressed in part":   {cat(m.OnePass, compressed(t, 1, m.Literal), m.Signature), "in part", errdefs.ErrInvalidArgument},
		"bomb":                 {compressed(t, 1, bomb), "when decompressed", errdefs.ErrInvalidArgument},
		"nothing compressed":   {[]byte{0xa3}, "cut", errdefs.ErrInvalidArgument},
		"behind what is zip":   {append(compressed(t, 1, whole), 0), "1 bytes behind", errdefs.ErrInvalidArgument},
		"trailing byte":        {append(bytes.Clone(whole), 0), "cut", errdefs.ErrInvalidArgument},
		"trailing text":        {cat(whole, evil), "more than one text", errdefs.ErrInvalidArgument},
		"text before":          {cat(evil, whole), "more than one text", errdefs.ErrInvalidArgument},
		"two texts":            {cat(m.OnePass, evil, m.Literal, m.Signature), "more than one text", errdefs.ErrInvalidArgument},
		"other text":           {cat(m.OnePass, evil, m.Signature), "invalid signature", errdefs.ErrPermissionDenied},
		"text alone":           {m.Literal, "not signed", errdefs.ErrInvalidArgument},
		"announced alone":      {cat(m.OnePass, m.Literal), "not signed", errdefs.ErrInvalidArgument},
		"detached":             {m.Signature, "detached", errdefs.ErrInvalidArgument},
		"signature first":      {cat(m.Signature, m.Literal), "no signed", errdefs.ErrInvalidArgument},
		"two signers":          {cat(second.OnePass, m.OnePass, m.Literal, m.Signature, second.Signature), "several signatures", errdefs.ErrInvalidArgument},
		"two messages":         {cat(whole, whole), "more than one text", errdefs.ErrInvalidArgument},
		"many packets":         {bytes.Repeat(m.Signature, 9), "more than 8 packets", errdefs.ErrInvalidArgument},
		"encrypted":            {[]byte{0xd2, 1, 1}, "no signed", errdefs.ErrInvalidArgument},
		"armoured":             {[]byte("-----BEGIN PGP MESSAGE-----\n"), "--armor", errdefs.ErrInvalidArgument},
		"empty":                {nil, "no signed", errdefs.ErrInvalidArgument},
		"web page":             {[]byte("<html>"), "cut", errdefs.ErrInvalidArgument},
		"huge":                 {make([]byte, simplesigning.MaxMessage+1), "more than 65536", errdefs.ErrInvalidArgument},
		"huge text":            {key.Sign(t, make([]byte, 17<<10), pgptest.Options{}).Whole(), "limit is 16384", errdefs.ErrInvalidArgument},
		"length beyond":        {cat(m.OnePass, []byte{0xcb, 255, 255, 255, 255, 255}), "cut", errdefs.ErrInvalidArgument},
		"signature of a text":  {key.Sign(t, text(), pgptest.Options{Type: packet.SigTypeText}).Whole(), "type 0x1", errdefs.ErrInvalidArgument},
		"other key":            {second.Whole(), "policy's key", errdefs.ErrPermissionDenied},
		"key of another":       {cat(m.OnePass, m.Literal, second.Signature), "policy's key", errdefs.ErrPermissionDenied},
		"announces another":    {cat(second.OnePass, m.Literal, m.Signature), "", nil}, // it only says what is to come
		"signed, but no image": {key.Sign(t, []byte("{}"), pgptest.Options{}).Whole(), "malformed", errdefs.ErrInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := simplesigning.Verify(tc.raw, []*simplesigning.Keyring{ring(t, key)})
			if !errors.Is(err, tc.want) || (err != nil && !strings.Contains(err.Error(), tc.word)) {
				t.Fatalf("got %v, want %v with %q", err, tc.want, tc.word)
			}
			if err == nil && (s.Claim != claim || s.Fingerprint != key.Name()) {
				t.Errorf("got %+v", s)
			}
		})
	}
	for cut := range whole {
		if _, err := simplesigning.Verify(whole[:cut], []*simplesigning.Keyring{ring(t, key)}); err == nil {
			t.Errorf("the first %d bytes of %d are accepted", cut, len(whole))
		}
	}
}

// TestKeys: which keys and hashes count.
func TestKeys(t *testing.T) {
	rsa := &packet.Config{Algorithm: packet.PubKeyAlgoRSA, RSABits: 2048}
	strong := pgptest.NewKey(t, rsa)
	small := pgptest.NewKey(t, &packet.Config{Algorithm: packet.PubKeyAlgoRSA, RSABits: 1024})
	ago := func(d time.Duration) time.Time { return time.Now().Add(-d) }
	then := func() time.Time { return ago(48 * time.Hour) }
	old := pgptest.NewKey(t, &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA, Time: then, KeyLifetimeSecs: 24 * 3600})
	fresh := pgptest.NewKey(t, &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA, Time: then})
	revoked := pgptest.NewKey(t, &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA, Time: then})
	before := ring(t, revoked)
	must(t, revoked.Revoke(packet.KeySuperseded, "", nil))
	sub := pgptest.NewKey(t, nil)
	must(t, sub.AddSigningSubkey(nil))
	encryption := pgptest.NewKey(t, rsa) // the only subkey that it has
	for name, tc := range map[string]struct {
		key  *pgptest.Key
		opts pgptest.Options
		ring []*simplesigning.Keyring
		word string
	}{
		"RSA":                     {strong, pgptest.Options{Hash: crypto.SHA512}, nil, ""},
		"SHA-1":                   {strong, pgptest.Options{Hash: crypto.SHA1}, nil, "insecure message hash"},
		"RSA of 1024 bits":        {small, pgptest.Options{}, nil, "key"},
		"subkey":                  {sub, pgptest.Options{Subkey: true}, nil, ""},
		"subkey for encryption":   {encryption, pgptest.Options{Subkey: true}, nil, "no valid signing"},
		"one of a ring":           {fresh, pgptest.Options{}, []*simplesigning.Keyring{ring(t, strong, fresh, sub)}, ""},
		"one of two rings":        {fresh, pgptest.Options{}, []*simplesigning.Keyring{ring(t, strong), ring(t, fresh)}, ""},
		"signed yesterday":        {fresh, pgptest.Options{Time: ago(24 * time.Hour)}, nil, ""},
		"signed before the key":   {fresh, pgptest.Options{Time: ago(72 * time.Hour)}, nil, "self signature"},
		"expired":                 {old, pgptest.Options{}, nil, "expired"},
		"expired since":           {old, pgptest.Options{Time: ago(40 * time.Hour)}, nil, "expired"},
		"not yet known revoked":   {revoked, pgptest.Options{Time: ago(time.Hour)}, []*simplesigning.Keyring{before}, ""},
		"revoked since":           {revoked, pgptest.Options{Time: ago(time.Hour)}, nil, "revoked"},
		"revoked in another copy": {revoked, pgptest.Options{Time: ago(time.Hour)}, []*simplesigning.Keyring{before, ring(t, revoked)}, "revoked"},
	} {
		t.Run(name, func(t *testing.T) {
			rings := tc.ring
			if rings == nil {
				rings = []*simplesigning.Keyring{ring(t, tc.key)}
			}
			s, err := simplesigning.Verify(tc.key.Sign(t, text(), tc.opts).Whole(), rings)
			if tc.word == "" {
				if err != nil || s.Fingerprint != tc.key.Name() || !strings.Contains(s.Ring.String(), tc.key.Name()) {
					t.Errorf("got %+v, %v", s, err)
				}
				return
			}
			if !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), tc.word) {
				t.Errorf("got %v, want %q", err, tc.word)
			}
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestTexts: a right signature makes no approval of a text that is none.
func TestTexts(t *testing.T) {
	key := pgptest.NewKey(t, nil)
	good := string(text())
	for name, tc := range map[string]struct{ from, to string }{
		"unknown critical":      {`"critical":{`, `"critical":{"expires":1,`},
		"critical twice":        {`"critical":{`, `"critical":{},"critical":{`},
		"type twice":            {`"type":`, `"type":"x","type":`},
		"other case":            {`"image":`, `"Image":`},
		"cosign's type":         {"atomic container signature", "cosign container image signature"},
		"unknown at the top":    {`"optional":`, `"more":{},"optional":`},
		"optional is missing":   {`,"optional":{"creator":"test","timestamp":1700000000}`, ""},
		"optional twice inside": {`"timestamp":1700000000`, `"x":1,"x":2`},
		"creator of wrong kind": {`"test"`, `1`},
		"time of wrong kind":    {`1700000000`, `1.5`},
		"no name":               {claim.Identity, ""},
		"no digest":             {claim.Digest.String(), ""},
		"short digest":          {claim.Digest.String(), claim.Digest.String()[:20]},
		"unknown of image":      {`"image":{`, `"image":{"x":1,`},
		"unknown of identity":   {`"identity":{`, `"identity":{"x":1,`},
		"something behind":      {`1700000000}}`, `1700000000}}{}`},
	} {
		t.Run(name, func(t *testing.T) {
			changed := strings.Replace(good, tc.from, tc.to, 1)
			if changed == good {
				t.Fatal("nothing was changed")
			}
			raw := key.Sign(t, []byte(changed), pgptest.Options{}).Whole()
			if s, err := simplesigning.Verify(raw, []*simplesigning.Keyring{ring(t, key)}); !errdefs.IsInvalidArgument(err) {
				t.Errorf("got %+v, %v", s, err)
			}
		})
	}
	further := strings.Replace(good, `"timestamp"`, `"note":{"a":[1]},"timestamp"`, 1)
	if _, err := simplesigning.Verify(key.Sign(t, []byte(further), pgptest.Options{}).Whole(), []*simplesigning.Keyring{ring(t, key)}); err != nil {
		t.Errorf("further optional members: %v", err)
	}
}

func TestKeyrings(t *testing.T) {
	key := pgptest.NewKey(t, nil)
	var armoured, private bytes.Buffer
	w, err := armor.Encode(&armoured, "PGP PUBLIC KEY BLOCK", nil)
	must(t, err)
	must(t, key.Serialize(w))
	must(t, w.Close())
	must(t, key.SerializePrivate(&private, nil))
	for name, tc := range map[string]struct {
		raw  []byte
		word string
	}{
		"binary":     {key.Public(t), ""},
		"armoured":   {armoured.Bytes(), ""},
		"secret key": {private.Bytes(), "secret key"},
		"nothing":    {nil, "no OpenPGP keyring"},
		"noise":      {[]byte("nonsense"), "no OpenPGP keyring"},
		"PEM":        {[]byte("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"), "no OpenPGP keyring"},
		"signature":  {key.Sign(t, text(), pgptest.Options{}).Whole(), "no OpenPGP keyring"},
		"many keys":  {bytes.Repeat(key.Public(t), 65), "65 keys"},
		"huge":       {make([]byte, 256<<10+1), "limit"},
	} {
		t.Run(name, func(t *testing.T) {
			k, err := simplesigning.ParseKeyring(tc.raw)
			if tc.word == "" {
				if err != nil || k.String() != key.Name() {
					t.Errorf("got %v, %v", k, err)
				}
				return
			}
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tc.word) {
				t.Errorf("got %v, want %q", err, tc.word)
			}
		})
	}
}

// FuzzVerify: nobody without the key makes a message that counts, other than by packing one that does anew.
func FuzzVerify(f *testing.F) {
	key := pgptest.NewKey(f, nil)
	m := key.Sign(f, text(), pgptest.Options{})
	f.Add(m.Whole())
	f.Add(cat(m.OnePass, m.Literal))
	f.Add([]byte{0xa3, 1, 3, 0})
	f.Add([]byte{0xcb, 0xe1, 'b', 0})
	rings := []*simplesigning.Keyring{ring(f, key)}
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := simplesigning.Verify(raw, rings)
		switch {
		case err == nil && (s.Claim != claim || s.Fingerprint != key.Name()):
			t.Errorf("forged: %+v from %x", s, raw)
		case err != nil && errdefs.IsUnknown(errdefs.Resolve(err)):
			t.Errorf("error without a class: %v", err)
		}
	})
}

func FuzzKeyring(f *testing.F) {
	f.Add(pgptest.NewKey(f, nil).Public(f))
	f.Add([]byte("-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nAAAA\n-----END PGP PUBLIC KEY BLOCK-----"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if k, err := simplesigning.ParseKeyring(raw); (err == nil) != (k != nil) {
			t.Errorf("%v, %v", k, err)
		}
	})
}
