package gunzip

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"

	"github.com/containerd/errdefs"
)

func pack(tb testing.TB, plain []byte, level int) []byte {
	tb.Helper()
	var out bytes.Buffer
	w, err := gzip.NewWriterLevel(&out, level)
	if err != nil {
		tb.Fatal(err)
	}
	w.Name, w.Comment, w.Extra = "name", "comment", []byte("extra")
	if _, err := w.Write(plain); err != nil {
		tb.Fatal(err)
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return out.Bytes()
}

func unpack(r *Reader, src io.Reader) ([]byte, error) {
	if err := r.Reset(src); err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

func standard(raw []byte) ([]byte, error) {
	zr, err := gzip.NewReader(bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(zr)
}

// plain makes data of many kinds: of few and many symbols, with matches near and far, across the window and the buffers.
func plain(rng *rand.Rand) []byte {
	b := make([]byte, rng.IntN(700<<10))
	symbols, reach := 1+rng.IntN(256), 1+rng.IntN(40<<10)
	for i := range b {
		b[i] = byte(rng.IntN(symbols))
		if i > 0 && rng.IntN(4) > 0 {
			b[i] = b[i-1-rng.IntN(min(i, reach))]
		}
		if i > 300 && rng.IntN(500) == 0 {
			copy(b[i-rng.IntN(300):i], b[rng.IntN(i):])
		}
	}
	return b
}

// TestSameAsStandardLibrary holds bytes and verdicts against compress/gzip, for whole, cut and changed streams. One reader
// does them all, so that nothing of one is left for the next.
func TestSameAsStandardLibrary(t *testing.T) {
	var r Reader
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 1))
		want := plain(rng)
		packed := pack(t, want, int(seed%12)-2)
		for _, src := range []io.Reader{bytes.NewReader(packed), iotest.HalfReader(bytes.NewReader(packed)), iotest.DataErrReader(bytes.NewReader(packed))} {
			if got, err := unpack(&r, src); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("seed %d: %d of %d bytes, %v", seed, len(got), len(want), err)
			}
		}
		changed := bytes.Clone(packed)
		changed[rng.IntN(len(changed))] ^= 1 << rng.IntN(8)
		for name, raw := range map[string][]byte{
			"cut":     packed[:rng.IntN(len(packed))],
			"changed": changed,
			"members": append(bytes.Clone(packed), pack(t, want[:len(want)/2], 6)...),
			"garbage": append(bytes.Clone(packed), "garbage"...),
		} {
			sameVerdict(t, &r, name, raw)
		}
	}
}

func sameVerdict(t *testing.T, r *Reader, name string, raw []byte) {
	t.Helper()
	want, wantErr := standard(raw)
	got, err := unpack(r, bytes.NewReader(raw))
	if (err == nil) != (wantErr == nil) || err == nil && !bytes.Equal(got, want) {
		t.Errorf("%s: %d bytes, %v; the standard library has %d, %v", name, len(got), err, len(want), wantErr)
	}
	if err != nil && !errors.Is(err, errdefs.ErrInvalidArgument) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		t.Errorf("%s: error without a class: %v", name, err)
	}
}

// TestReachAcrossMembers: a member must not copy from the one before it.
func TestReachAcrossMembers(t *testing.T) {
	first := pack(t, bytes.Repeat([]byte("secret"), 1000), 6)
	// A block with fixed codes that begins with a match: length 3, distance 1, end.
	second := []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0, 0x03, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	var r Reader
	if _, err := unpack(&r, bytes.NewReader(append(first, second...))); !errors.Is(err, ErrCorrupt) {
		t.Errorf("got %v", err)
	}
}

// TestLongHeaders: names and comments are bounded as in the standard library.
func TestLongHeaders(t *testing.T) {
	var r Reader
	rest := pack(t, []byte("text"), 6)[10+len("extra")+2+len("name")+1+len("comment")+1:]
	for _, flag := range []byte{flagName, flagComment} {
		for _, n := range []int{0, 1, 510, 511, 512, 513, 5000, 200_000} {
			raw := []byte{0x1f, 0x8b, 8, flag, 0, 0, 0, 0, 0, 0}
			raw = append(raw, bytes.Repeat([]byte("n"), n)...)
			raw = append(append(raw, 0), rest...)
			sameVerdict(t, &r, fmt.Sprintf("flag %d with %d bytes", flag, n), raw)
		}
	}
}

func TestReaderThatGivesNothing(t *testing.T) {
	var r Reader
	if _, err := unpack(&r, nothing{}); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("got %v", err)
	}
}

type nothing struct{}

func (nothing) Read([]byte) (int, error) { return 0, nil }

func FuzzReader(f *testing.F) {
	for seed := range uint64(12) {
		rng := rand.New(rand.NewPCG(seed, 2))
		f.Add(pack(f, plain(rng)[:rng.IntN(300)], int(seed)-2))
	}
	var r Reader
	f.Fuzz(func(t *testing.T, raw []byte) { sameVerdict(t, &r, "fuzzed", raw) })
}
