package digestmac

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
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
	m := map[string]func([]byte) *Sum{"library": func(key []byte) *Sum {
		return &Sum{plainDigest: sha256.New(), plainMAC: hmac.New(sha256.New, key)}
	}}
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
					if wrote, err := s.Hash().Write(stream[done : done+n]); wrote != n || err != nil {
						t.Fatalf("wrote %d of %d: %v", wrote, n, err)
					}
					done += n
					check(t, s, key, stream[:done])
				}
				if sum := sha256.Sum256(stream); !bytes.Equal(s.Hash().Sum([]byte("x")), append([]byte("x"), sum[:]...)) {
					t.Fatal("the hash says something else than the digest")
				}
			}
		})
	}
}

func BenchmarkBoth(b *testing.B) {
	buf, key := make([]byte, 256<<10), make([]byte, 32)
	digest, mac, sum := sha256.New(), hmac.New(sha256.New, key), New(key)
	for name, write := range map[string]func(){
		"apart":    func() { digest.Write(buf); mac.Write(buf) },
		"together": func() { sum.Write(buf) },
	} {
		b.Run(fmt.Sprintf("%s/%d KiB", name, len(buf)>>10), func(b *testing.B) {
			b.SetBytes(int64(len(buf)))
			for b.Loop() {
				write()
			}
		})
	}
}
