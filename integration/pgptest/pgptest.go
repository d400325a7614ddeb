// Package pgptest makes OpenPGP keys and simple signing messages for tests, good ones and others.
package pgptest

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	_ "crypto/sha1" //nolint:gosec // to see it refused
	"encoding/binary"
	"fmt"
	"io"
	"math/big"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"
	"github.com/opencontainers/go-digest"
)

// Key is a key pair.
type Key struct{ *openpgp.Entity }

// NewKey makes a key (Ed25519 where config is nil).
func NewKey(tb testing.TB, config *packet.Config) *Key {
	tb.Helper()
	if config == nil {
		config = &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA}
	}
	e, err := openpgp.NewEntity("signer", "", "signer@example.org", config)
	if err != nil {
		tb.Fatal(err)
	}
	return &Key{e}
}

// Name is the fingerprint as gpg writes it.
func (k *Key) Name() string { return fmt.Sprintf("%X", k.PrimaryKey.Fingerprint) }

// Public is what gpg --export writes.
func (k *Key) Public(tb testing.TB) []byte {
	tb.Helper()
	var out bytes.Buffer
	if err := k.Serialize(&out); err != nil {
		tb.Fatal(err)
	}
	return out.Bytes()
}

// Options of a signature; the zero value is what gpg does today.
type Options struct {
	Hash   crypto.Hash
	Time   time.Time
	Type   packet.SignatureType
	Subkey bool // sign by the last subkey
}

// Parts are the packets of a message.
type Parts struct{ OnePass, Literal, Signature []byte }

// Whole is the message.
func (p *Parts) Whole() []byte { return bytes.Join([][]byte{p.OnePass, p.Literal, p.Signature}, nil) }

// Sign makes a message around a text.
func (k *Key) Sign(tb testing.TB, text []byte, o Options) *Parts {
	tb.Helper()
	must := func(err error) {
		tb.Helper()
		if err != nil {
			tb.Fatal(err)
		}
	}
	if o.Hash == 0 {
		o.Hash = crypto.SHA256
	}
	if o.Time.IsZero() {
		o.Time = time.Now()
	}
	if o.Hash == crypto.SHA1 {
		return &Parts{OnePass: weakOnePass(k), Literal: Literal(tb, text), Signature: weakSignature(tb, k, text)}
	}
	private := k.PrivateKey
	if o.Subkey {
		private = k.Subkeys[len(k.Subkeys)-1].PrivateKey
	}
	sig := &packet.Signature{
		Version: 4, SigType: o.Type, PubKeyAlgo: private.PubKeyAlgo, Hash: o.Hash, CreationTime: o.Time,
		IssuerKeyId: &private.KeyId, IssuerFingerprint: private.Fingerprint,
	}
	h := o.Hash.New()
	h.Write(text)
	must(sig.Sign(h, private, nil))
	var one, signature bytes.Buffer
	ops := &packet.OnePassSignature{Version: 3, SigType: o.Type, Hash: o.Hash, PubKeyAlgo: private.PubKeyAlgo, KeyId: private.KeyId, IsLast: true}
	must(ops.Serialize(&one))
	must(sig.Serialize(&signature))
	return &Parts{OnePass: one.Bytes(), Literal: Literal(tb, text), Signature: signature.Bytes()}
}

// Literal is the packet of a text.
func Literal(tb testing.TB, text []byte) []byte {
	tb.Helper()
	var out bytes.Buffer
	w, err := packet.SerializeLiteral(closer{&out}, true, "name", 7)
	if err == nil {
		_, err = w.Write(text)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		tb.Fatal(err)
	}
	return out.Bytes()
}

type closer struct{ io.Writer }

func (closer) Close() error { return nil }

// Text is the text of a signature of an image.
func Text(d digest.Digest, reference string) []byte {
	return fmt.Appendf(nil, `{"critical":{"identity":{"docker-reference":%q},"image":{"docker-manifest-digest":%q},"type":"atomic container signature"},"optional":{"creator":"test","timestamp":1700000000}}`,
		reference, d)
}

// weakOnePass announces an RSA signature with SHA-1, which the library does not make.
func weakOnePass(k *Key) []byte {
	return append(binary.BigEndian.AppendUint64([]byte{0xc4, 13, 3, 0, 2, 1}, k.PrimaryKey.KeyId), 1)
}

// weakSignature is that signature, right in all else (RFC 9580, section 5.2.3).
func weakSignature(tb testing.TB, k *Key, text []byte) []byte {
	tb.Helper()
	private, ok := k.PrivateKey.PrivateKey.(*rsa.PrivateKey)
	if !ok {
		tb.Fatal("SHA-1 wants an RSA key")
	}
	signed := []byte{4, 0, 1, 2, 0, 16, 5, 2}
	signed = binary.BigEndian.AppendUint32(signed, uint32(time.Now().Unix()))
	signed = binary.BigEndian.AppendUint64(append(signed, 9, 16), k.PrimaryKey.KeyId)
	h := crypto.SHA1.New()
	h.Write(text)
	h.Write(signed)
	h.Write(binary.BigEndian.AppendUint32([]byte{4, 0xff}, uint32(len(signed))))
	sum := h.Sum(nil)
	sig, err := rsa.SignPKCS1v15(nil, private, crypto.SHA1, sum)
	if err != nil {
		tb.Fatal(err)
	}
	body := append(signed, 0, 0, sum[0], sum[1])
	n := new(big.Int).SetBytes(sig)
	body = append(binary.BigEndian.AppendUint16(body, uint16(n.BitLen())), n.Bytes()...)
	return append(binary.BigEndian.AppendUint32([]byte{0xc2, 255}, uint32(len(body))), body...)
}
