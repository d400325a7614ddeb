package decrypt

import (
	"crypto/cipher"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/coffer-project/coffer/guestpull/decrypt/digestmac"
)

// Opening deciphers a layer while it is fetched, and computes all that has to be known of it in the same pass: what Reader
// does, and the hashes before and after, for little more than the time of one. It is for one goroutine at a time.
type Opening struct {
	sum    *digestmac.Sum
	stream cipher.Stream
	plain  bool
	want   []byte
}

// Opening returns one for a layer that is fetched from its first byte on. plain says that Plain will be asked for.
func (l *Layer) Opening(plain bool) *Opening {
	return &Opening{sum: digestmac.New(l.key), stream: l.stream(), plain: plain, want: l.hmac}
}

// Take deciphers the next bytes where they lie.
func (o *Opening) Take(p []byte) {
	if o.plain {
		o.sum.Open(o.stream, p)
		return
	}
	_, _ = o.sum.Write(p) // never fails
	o.stream.XORKeyStream(p, p)
}

// Sum appends the SHA-256 of the bytes as they came.
func (o *Opening) Sum(b []byte) []byte {
	sum := o.sum.Digest()
	return append(b, sum[:]...)
}

// Plain returns the SHA-256 of the bytes as they were left.
func (o *Opening) Plain() digest.Digest {
	sum := o.sum.Plain()
	return digest.NewDigestFromBytes(digest.SHA256, sum[:])
}

// Reader returns src, whose bytes were all taken before they are read. It gives io.EOF only when the HMAC holds.
func (o *Opening) Reader(src io.Reader) io.Reader {
	return &reader{src: src, mac: func() []byte { mac := o.sum.MAC(); return mac[:] }, want: o.want}
}
