// Package digestmac computes SHA-256 and HMAC-SHA-256 of the same stream in one pass, and SHA-256 of what it deciphers to.
// The first two hash the same blocks from different beginnings, so that the message schedule (FIPS 180-4, 6.2.2) is needed
// once. Each waits for its own last round most of the time, which leaves the processor free for the others: all three cost
// little more than one of them.
//
// Where the processor has no SHA extensions, the standard library computes them, one after the other.
package digestmac

import (
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"hash"
)

const (
	blockSize = sha256.BlockSize
	innerPad  = 0x36
	outerPad  = 0x5c
	// step is how many bytes of plaintext are hashed beside as many of the ciphertext that follows. Both stay in the
	// processor's nearest cache.
	step = 8 << 10
)

// state is a hash between two blocks, its words in the order in which the processor takes them: F E B A, H G D C.
type state [8]uint32

// initial is FIPS 180-4, 5.3.3.
var initial = state{0x9b05688c, 0x510e527f, 0xbb67ae85, 0x6a09e667, 0x5be0cd19, 0x1f83d9ab, 0xa54ff53a, 0x3c6ef372}

// Sum is the values of a stream that is written to it, or opened by it.
type Sum struct {
	digest, inner state
	outer         [blockSize]byte // key that the outer hash begins with
	rest          [blockSize]byte // bytes of a block that is not full
	length        uint64          // bytes of the stream

	plain state  // of the deciphered stream
	late  []byte // its last bytes, which plain has not taken yet: less than step and a block

	// Instead of all that, where the processor cannot.
	slow *slow
}

// slow computes the values by the standard library.
type slow struct{ digest, mac, plain hash.Hash }

func newSlow(key []byte) *Sum {
	return &Sum{slow: &slow{digest: sha256.New(), mac: hmac.New(sha256.New, key), plain: sha256.New()}}
}

// New returns the Sum of an empty stream. key is the HMAC's.
func New(key []byte) *Sum {
	if !supported {
		return newSlow(key)
	}
	return newFast(key)
}

func newFast(key []byte) *Sum {
	s := &Sum{digest: initial, inner: initial, plain: initial}
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
	if s.slow != nil {
		s.slow.digest.Write(p)
		s.slow.mac.Write(p)
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

// Open takes a piece of the stream, like Write, and deciphers it where it lies. A stream is opened from its first byte on or
// not at all.
func (s *Sum) Open(stream cipher.Stream, p []byte) {
	if s.slow != nil {
		_, _ = s.Write(p)
		stream.XORKeyStream(p, p)
		s.slow.plain.Write(p)
		return
	}
	if s.late == nil {
		s.late = make([]byte, 0, step+blockSize)
	}
	for len(p) > 0 {
		n := min(len(p), step)
		switch begun, whole := int(s.length%blockSize), n&^(blockSize-1); {
		case begun > 0 || whole == 0: // up to the next block
			n = min(n, blockSize-begun)
			_, _ = s.Write(p[:n])
		case len(s.late) < step: // not enough of the plaintext to go with it
			n = min(whole, step-len(s.late))
			_, _ = s.Write(p[:n])
		default:
			n = whole
			s.length += uint64(n)
			blocks3(&s.digest, &s.inner, p[:n], &s.plain, &s.late[0])
			s.late = s.late[:copy(s.late, s.late[n:])]
		}
		stream.XORKeyStream(p[:n], p[:n])
		s.late = append(s.late, p[:n]...)
		p = p[n:]
	}
}

// Digest returns the SHA-256 of what was written so far.
func (s *Sum) Digest() [sha256.Size]byte {
	if s.slow != nil {
		return [sha256.Size]byte(s.slow.digest.Sum(nil))
	}
	return finish(s.digest, s.tail(), s.length)
}

// Plain returns the SHA-256 of what the stream deciphered to so far.
func (s *Sum) Plain() [sha256.Size]byte {
	if s.slow != nil {
		return [sha256.Size]byte(s.slow.plain.Sum(nil))
	}
	st, whole := s.plain, len(s.late)&^(blockSize-1)
	var nobody state
	blocks(&st, &nobody, s.late[:whole])
	return finish(st, s.late[whole:], s.length)
}

// MAC returns the HMAC of what was written so far. It is to be compared by hmac.Equal.
func (s *Sum) MAC() [sha256.Size]byte {
	if s.slow != nil {
		return [sha256.Size]byte(s.slow.mac.Sum(nil))
	}
	inner := finish(s.inner, s.tail(), blockSize+s.length)
	return sha256.Sum256(append(s.outer[:len(s.outer):len(s.outer)], inner[:]...))
}

// tail is the block that is not full.
func (s *Sum) tail() []byte { return s.rest[:s.length%blockSize] }

// finish pads a copy of a state, FIPS 180-4, 5.1.1. tail is less than a block; length counts it and all that went before.
func finish(st state, tail []byte, length uint64) (sum [sha256.Size]byte) {
	var last [2 * blockSize]byte
	filled := copy(last[:], tail)
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
