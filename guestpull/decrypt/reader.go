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
)

// params is what deciphers one layer.
type params struct {
	key   []byte
	nonce []byte
	hmac  []byte
}

// newParams checks the lengths of everything that came from outside.
func newParams(private *privateOpts, pub *publicOpts) (*params, error) {
	p := &params{key: private.Key, nonce: private.Options["nonce"], hmac: pub.HMAC}
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

// reader returns the plaintext of src.
func (p *params) reader(src io.Reader) io.Reader {
	block, err := aes.NewCipher(p.key)
	if err != nil {
		return &reader{err: fmt.Errorf("prepare AES: %w", err)}
	}
	return &reader{
		src:    src,
		stream: cipher.NewCTR(block, p.nonce),
		mac:    hmac.New(sha256.New, p.key),
		want:   p.hmac,
	}
}

// reader authenticates the ciphertext and deciphers it where it lies, in the caller's buffer. It should be read in blocks
// of 32 KiB or more.
type reader struct {
	src    io.Reader
	stream cipher.Stream
	mac    hash.Hash
	want   []byte
	err    error
}

func (r *reader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	n, err := r.src.Read(p)
	if n > 0 {
		r.mac.Write(p[:n])
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
	if !hmac.Equal(r.mac.Sum(nil), r.want) {
		return fmt.Errorf("HMAC does not match: %w", ErrTampered)
	}
	return io.EOF
}
