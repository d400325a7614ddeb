// Package digestmac computes SHA-256 and HMAC-SHA-256 of the same stream in one pass. Both hash the same blocks from
// different beginnings, so that the message schedule (FIPS 180-4, 6.2.2) is needed once; and each waits for its own last
// round most of the time, which leaves the processor free for the other. Together they cost little more than one of them.
//
// Where the processor has no SHA extensions, the standard library computes both, one after the other.
package digestmac

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"hash"
)

const (
	blockSize = sha256.BlockSize
	innerPad  = 0x36
	outerPad  = 0x5c
)

// state is a hash between two blocks, its words in the order in which the processor takes them: F E B A, H G D C.
type state [8]uint32

// initial is FIPS 180-4, 5.3.3.
var initial = state{0x9b05688c, 0x510e527f, 0xbb67ae85, 0x6a09e667, 0x5be0cd19, 0x1f83d9ab, 0xa54ff53a, 0x3c6ef372}

// Sum is both values of a stream that is written to it.
type Sum struct {
	digest, inner state
	outer         [blockSize]byte // key that the outer hash begins with
	rest          [blockSize]byte // bytes of a block that is not full
	length        uint64          // bytes of the stream

	// Instead of all that, where the processor cannot.
	plainDigest, plainMAC hash.Hash
}

// New returns the Sum of an empty stream. key is the HMAC's.
func New(key []byte) *Sum {
	if !supported {
		return &Sum{plainDigest: sha256.New(), plainMAC: hmac.New(sha256.New, key)}
	}
	return newFast(key)
}

func newFast(key []byte) *Sum {
	s := &Sum{digest: initial, inner: initial}
	if len(key) > blockSize {
		short := sha256.Sum256(key)
		key = short[:]
	}
	copy(s.outer[:], key)
	inner := s.outer
	for i := range inner {
		inner[i] ^= innerPad
		s.outer[i] ^= outerPad
	}
	var nobody state
	blocks(&s.inner, &nobody, inner[:])
	clear(inner[:])
	return s
}

// Write takes a piece of the stream. It never fails.
func (s *Sum) Write(p []byte) (int, error) {
	n := len(p)
	if s.plainDigest != nil {
		s.plainDigest.Write(p)
		s.plainMAC.Write(p)
		return n, nil
	}
	filled := int(s.length % blockSize)
	s.length += uint64(n)
	if filled > 0 {
		took := copy(s.rest[filled:], p)
		p = p[took:]
		if filled+took < blockSize {
			return n, nil
		}
		blocks(&s.digest, &s.inner, s.rest[:])
	}
	whole := len(p) / blockSize * blockSize
	blocks(&s.digest, &s.inner, p[:whole])
	copy(s.rest[:], p[whole:])
	return n, nil
}

// Digest returns the SHA-256 of what was written so far.
func (s *Sum) Digest() [sha256.Size]byte {
	if s.plainDigest != nil {
		return [sha256.Size]byte(s.plainDigest.Sum(nil))
	}
	return s.finish(s.digest, s.length)
}

// MAC returns the HMAC of what was written so far. It is to be compared by hmac.Equal.
func (s *Sum) MAC() [sha256.Size]byte {
	if s.plainDigest != nil {
		return [sha256.Size]byte(s.plainMAC.Sum(nil))
	}
	inner := s.finish(s.inner, blockSize+s.length)
	return sha256.Sum256(append(s.outer[:len(s.outer):len(s.outer)], inner[:]...))
}

// finish pads a copy of a state, FIPS 180-4, 5.1.1. length counts all bytes that went into it.
func (s *Sum) finish(st state, length uint64) (sum [sha256.Size]byte) {
	filled := int(s.length % blockSize)
	var last [2 * blockSize]byte
	copy(last[:], s.rest[:filled])
	last[filled] = 0x80
	end := blockSize
	if filled+1+8 > blockSize {
		end = 2 * blockSize
	}
	binary.BigEndian.PutUint64(last[end-8:], length*8)
	var nobody state
	blocks(&st, &nobody, last[:end])
	for i, from := range [8]int{3, 2, 7, 6, 1, 0, 5, 4} {
		binary.BigEndian.PutUint32(sum[4*i:], st[from])
	}
	return sum
}

// Hash returns the digest's side of s, for those who hash streams. What is written to it is part of both values.
func (s *Sum) Hash() hash.Hash { return digestHash{s} }

type digestHash struct{ s *Sum }

func (h digestHash) Write(p []byte) (int, error) { return h.s.Write(p) }

func (h digestHash) Sum(b []byte) []byte {
	sum := h.s.Digest()
	return append(b, sum[:]...)
}

// Reset is not possible: the HMAC's key is not kept.
func (digestHash) Reset()         { panic("digestmac: a stream cannot begin again") }
func (digestHash) Size() int      { return sha256.Size }
func (digestHash) BlockSize() int { return blockSize }
