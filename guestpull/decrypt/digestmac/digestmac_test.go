package digestmac

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

func random(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

// makers are both ways to compute; each must give what the standard library gives.
func makers(t *testing.T) map[string]func(key []byte) *Sum {
	m := map[string]func([]byte) *Sum{"library": newSlow}
	if supported {
		m["processor"] = newFast
	} else {
		t.Log("this processor has no SHA extensions: only the way without them is tested")
	}
	return m
}

func check(t *testing.T, s *Sum, key, stream []byte) {
	t.Helper()
	mac := hmac.New(sha256.New, key)
	mac.Write(stream)
	if got, want := s.Digest(), sha256.Sum256(stream); got != want {
		t.Fatalf("digest of %d bytes is %x, want %x", len(stream), got, want)
	}
	if got := s.MAC(); !bytes.Equal(got[:], mac.Sum(nil)) {
		t.Fatalf("HMAC of %d bytes with a key of %d is %x, want %x", len(stream), len(key), got, mac.Sum(nil))
	}
}

func TestLengths(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for name, make := range makers(t) {
		t.Run(name, func(t *testing.T) {
			for n := range 300 {
				key, stream := random(rng, 32), random(rng, n)
				s := make(key)
				s.Write(stream)
				check(t, s, key, stream)
			}
			for _, n := range []int{0, 1, 63, 64, 65, 200} {
				key, stream := random(rng, n), random(rng, 1000)
				s := make(key)
				s.Write(stream)
				check(t, s, key, stream)
			}
		})
	}
}

// TestPieces writes in pieces of all sizes, and asks in between, which must change nothing.
func TestPieces(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for name, make := range makers(t) {
		t.Run(name, func(t *testing.T) {
			for range 200 {
				key, stream := random(rng, 32), random(rng, rng.IntN(5000))
				s := make(key)
				for done := 0; done < len(stream); {
					n := min(1+rng.IntN(200), len(stream)-done)
					if wrote, err := s.Write(stream[done : done+n]); wrote != n || err != nil {
						t.Fatalf("wrote %d of %d: %v", wrote, n, err)
					}
					done += n
					check(t, s, key, stream[:done])
				}
			}
		})
	}
}

// TestOpen opens in pieces: tiny ones, such as are a block or a step long, and large ones.
func TestOpen(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	sizes := []func() int{
		func() int { return 1 + rng.IntN(200) }, func() int { return 64 * (1 + rng.IntN(200)) }, func() int { return step },
		func() int { return 1 + rng.IntN(5*step) }, func() int { return 1 << 20 },
	}
	for name, make := range makers(t) {
		t.Run(name, func(t *testing.T) {
			for round := range 100 {
				key, plain := random(rng, 32), random(rng, rng.IntN(6*step))
				sealed := slices.Clone(plain)
				ctr(t, key).XORKeyStream(sealed, sealed)
				s, stream, opened := make(key), ctr(t, key), slices.Clone(sealed)
				for done := 0; done < len(plain); {
					// Mixed sizes in every second round.
					n := min(sizes[(round/2+done*(round%2))%len(sizes)](), len(plain)-done)
					s.Open(stream, opened[done:done+n])
					done += n
					if got, want := s.Plain(), sha256.Sum256(plain[:done]); got != want {
						t.Fatalf("digest of %d bytes of plaintext is %x, want %x", done, got, want)
					}
					check(t, s, key, sealed[:done])
				}
				if !bytes.Equal(opened, plain) {
					t.Fatal("deciphered to something else")
				}
			}
		})
	}
}

func ctr(tb testing.TB, key []byte) cipher.Stream {
	tb.Helper()
	block, err := aes.NewCipher(key)
	if err != nil {
		tb.Fatal(err)
	}
	return cipher.NewCTR(block, key[:aes.BlockSize])
}

func BenchmarkSum(b *testing.B) {
	buf, key := make([]byte, 256<<10), make([]byte, 32)
	digest, mac, plain, stream := sha256.New(), hmac.New(sha256.New, key), sha256.New(), ctr(b, key)
	both, three := New(key), New(key)
	for name, write := range map[string]func(){
		"apart":  func() { digest.Write(buf); mac.Write(buf) },
		"both":   func() { both.Write(buf) },
		"opened": func() { both.Write(buf); stream.XORKeyStream(buf, buf); plain.Write(buf) },
		"three":  func() { three.Open(stream, buf) },
	} {
		b.Run(fmt.Sprintf("%s/%d KiB", name, len(buf)>>10), func(b *testing.B) {
			b.SetBytes(int64(len(buf)))
			for b.Loop() {
				write()
			}
		})
	}
}
