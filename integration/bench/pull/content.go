package main

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
)

// The kinds of content. Each is made to pack like the real thing, as far as the cost of inflating it goes.
const (
	contentApp   = "app"   // a third each of program code, text and structured data
	contentText  = "text"  // words by Zipf's law
	contentModel = "model" // Gaussian weights in bf16
)

// source makes bytes; the same seed makes the same bytes on every machine.
type source struct {
	rng   *rand.Rand
	zipf  *rand.Zipf
	words []string
	codes [][]byte
}

func newSource(seed uint64) *source {
	rng := rand.New(rand.NewPCG(seed, 0xc0ffe2)) //nolint:gosec // content of test images
	s := &source{rng: rng, zipf: rand.NewZipf(rng, 1.2, 4, 8191)}
	for range 8192 {
		word := make([]byte, 2+rng.IntN(9))
		for i := range word {
			word[i] = "etaoinshrdlucmfwypvbgkjqxz"[min(rng.IntN(26), rng.IntN(26))]
		}
		s.words = append(s.words, string(word))
	}
	for range 192 {
		code := make([]byte, 2+rng.IntN(4))
		for i := range code {
			code[i] = byte(rng.Uint32())
		}
		s.codes = append(s.codes, code)
	}
	return s
}

// size draws the size of a file: few large ones, many small ones, as in real trees.
func (s *source) size(mean int64) int64 {
	const sigma = 1.5
	x := math.Exp(s.rng.NormFloat64()*sigma - sigma*sigma/2)
	return max(1, min(int64(float64(mean)*x), mean*100))
}

// fill fills buf with content of a kind. Files of an app take turns by their number.
func (s *source) fill(buf []byte, kind string, file int) {
	switch {
	case kind == contentModel:
		s.weights(buf)
	case kind == contentText || file%3 == 1:
		s.text(buf)
	case file%3 == 0:
		s.code(buf)
	default:
		s.records(buf)
	}
}

func (s *source) text(buf []byte) {
	for n := 0; n < len(buf); {
		n += copy(buf[n:], s.words[s.zipf.Uint64()])
		end := byte(' ')
		if s.rng.IntN(12) == 0 {
			end = '\n'
		}
		if n < len(buf) {
			buf[n] = end
			n++
		}
	}
}

// code looks like machine code: short patterns from a small set, with operands between.
func (s *source) code(buf []byte) {
	for n := 0; n < len(buf); {
		n += copy(buf[n:], s.codes[min(s.rng.IntN(len(s.codes)), s.rng.IntN(len(s.codes)), s.rng.IntN(len(s.codes)))])
		var operand [4]byte
		switch s.rng.IntN(8) {
		case 0:
			binary.LittleEndian.PutUint32(operand[:], uint32(s.rng.IntN(1<<16)))
			n += copy(buf[n:], operand[:])
		case 1, 2:
			operand[0] = byte(s.rng.IntN(32) * 8)
			n += copy(buf[n:], operand[:1])
		}
	}
}

// records looks like what programs write down: the same keys with other values.
func (s *source) records(buf []byte) {
	for n := 0; n < len(buf); {
		n += copy(buf[n:], fmt.Sprintf("{\"id\": %d, \"name\": %q, \"size\": %d, \"sum\": \"%08x%08x\", \"tags\": [%q, %q]}\n",
			s.rng.IntN(1e6), s.words[s.zipf.Uint64()], s.rng.IntN(1e5), s.rng.Uint32(), s.rng.Uint32(),
			s.words[s.zipf.Uint64()], s.words[s.zipf.Uint64()]))
	}
}

// weights are normally distributed with the spread of a trained layer. len(buf) must be even.
func (s *source) weights(buf []byte) {
	for i := 0; i+1 < len(buf); i += 2 {
		bits := math.Float32bits(float32(s.rng.NormFloat64() * 0.02))
		binary.LittleEndian.PutUint16(buf[i:], uint16(bits>>16))
	}
}
