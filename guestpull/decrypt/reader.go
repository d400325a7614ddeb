package decrypt

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"io"
)

// Layer deciphers one layer, as often as it is fetched.
type Layer struct {
	key   []byte
	block cipher.Block // of the key
	nonce []byte
	hmac  []byte
}

// newLayer checks the lengths of everything that came from outside.
func newLayer(private *privateOpts, pub *publicOpts) (_ *Layer, err error) {
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
	if p.block, err = aes.NewCipher(p.key); err != nil {
		return nil, fmt.Errorf("prepare AES: %w", err)
	}
	return p, nil
}

// Reader returns the plaintext of src. It gives io.EOF only when the HMAC holds. It should be read in blocks of 32 KiB or more.
func (l *Layer) Reader(src io.Reader) io.Reader {
	mac, stream := hmac.New(sha256.New, l.key), l.stream()
	take := func(p []byte) {
		mac.Write(p)
		stream.XORKeyStream(p, p)
	}
	return &reader{src: src, take: take, mac: func() []byte { return mac.Sum(nil) }, want: l.hmac}
}

func (l *Layer) stream() cipher.Stream { return cipher.NewCTR(l.block, l.nonce) }

// reader authenticates the ciphertext and deciphers it where it lies, in the caller's buffer.
type reader struct {
	src  io.Reader
	take func([]byte) // takes what was read, in place; nil: that was done before
	mac  func() []byte
	want []byte
	err  error
}

func (r *reader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	n, err := r.src.Read(p)
	if n > 0 && r.take != nil {
		r.take(p[:n])
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
