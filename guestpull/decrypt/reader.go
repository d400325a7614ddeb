package decrypt

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"

	"github.com/coffer-project/coffer/guestpull/decrypt/digestmac"
)

// Layer deciphers one layer, as often as it is fetched.
type Layer struct {
	key   []byte
	nonce []byte
	hmac  []byte
}

// newLayer checks the lengths of everything that came from outside.
func newLayer(private *privateOpts, pub *publicOpts) (*Layer, error) {
	p := &Layer{key: private.Key, nonce: private.Options["nonce"], hmac: pub.HMAC}
	if open, ok := pub.Options["nonce"]; ok {
		// ocicrypt prefers the open nonce; the wrapped one cannot be changed by a registry. Where both exist they are equal.
		if p.nonce != nil && !bytes.Equal(p.nonce, open) {
			return nil, fmt.Errorf("open and wrapped nonce differ: %w", ErrMalformed)
		}
		p.nonce = open
	}
	switch {
	case len(p.key) != 32:
		return nil, fmt.Errorf("layer key has %d bytes, want 32: %w", len(p.key), ErrMalformed)
	case len(p.nonce) != aes.BlockSize:
		return nil, fmt.Errorf("layer nonce has %d bytes, want %d: %w", len(p.nonce), aes.BlockSize, ErrMalformed)
	case len(p.hmac) != sha256.Size:
		return nil, fmt.Errorf("layer HMAC has %d bytes, want %d: %w", len(p.hmac), sha256.Size, ErrMalformed)
	}
	return p, nil
}

// Reader returns the plaintext of src. It gives io.EOF only when the HMAC holds.
func (l *Layer) Reader(src io.Reader) io.Reader {
	mac := hmac.New(sha256.New, l.key)
	return l.reader(src, mac.Write, func() []byte { return mac.Sum(nil) })
}

// Joint returns a SHA-256, and what deciphers a stream like Reader. All that is read from the stream must have been written
// to the hash before, in the same order: both values are computed by one pass, which is half the work.
func (l *Layer) Joint() (digest hash.Hash, open func(src io.Reader) io.Reader) {
	sum := digestmac.New(l.key)
	return sum.Hash(), func(src io.Reader) io.Reader {
		hashed := func(p []byte) (int, error) { return len(p), nil }
		return l.reader(src, hashed, func() []byte { mac := sum.MAC(); return mac[:] })
	}
}

func (l *Layer) reader(src io.Reader, update func([]byte) (int, error), mac func() []byte) io.Reader {
	block, err := aes.NewCipher(l.key)
	if err != nil {
		return &reader{err: fmt.Errorf("prepare AES: %w", err)}
	}
	return &reader{src: src, stream: cipher.NewCTR(block, l.nonce), update: update, mac: mac, want: l.hmac}
}

// reader authenticates the ciphertext and deciphers it where it lies, in the caller's buffer. It should be read in blocks
// of 32 KiB or more.
type reader struct {
	src    io.Reader
	stream cipher.Stream
	update func([]byte) (int, error) // takes ciphertext into the HMAC, and never fails
	mac    func() []byte
	want   []byte
	err    error
}

func (r *reader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	n, err := r.src.Read(p)
	if n > 0 {
		_, _ = r.update(p[:n])
		r.stream.XORKeyStream(p[:n], p[:n])
	}
	r.err = err
	if err == io.EOF {
		r.err = r.verdict()
	}
	if n > 0 {
		// The verdict waits for the next call, so that no caller mistakes the last bytes for proven ones.
		return n, nil
	}
	return 0, r.err
}

// verdict is io.EOF when the whole stream carries the expected HMAC.
func (r *reader) verdict() error {
	if !hmac.Equal(r.mac(), r.want) {
		return fmt.Errorf("HMAC does not match: %w", ErrTampered)
	}
	return io.EOF
}
