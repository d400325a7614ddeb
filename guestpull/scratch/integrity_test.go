package scratch

import (
	"encoding/hex"
	"testing"
)

// head is a disk's head as the kernel writes it: for 614216 sectors in 40 MiB more.
func head(tb testing.TB) []byte {
	tb.Helper()
	raw, err := hex.DecodeString("696e746567727400" + "05" + "0f" + "1c00" + "01000000" + "485f090000000000" + "00000000" + "03")
	if err != nil {
		tb.Fatal(err)
	}
	return append(raw, make([]byte, sector-len(raw))...)
}

func TestParseSuperblock(t *testing.T) {
	const sectors = 0x95f48
	got, err := parseSuperblock(head(t), 1<<30)
	if err != nil || got != sectors {
		t.Errorf("got %d, %v", got, err)
	}
	for name, tc := range map[string]struct {
		change func([]byte) []byte
		size   int64
	}{
		"larger than the disk": {func(b []byte) []byte { return b }, sectors*512 - 1},
		"other magic":          {func(b []byte) []byte { b[0]++; return b }, 1 << 30},
		"negative":             {func(b []byte) []byte { b[23] = 0xff; return b }, 1 << 30},
		"nothing":              {func(b []byte) []byte { clear(b[16:24]); return b }, 1 << 30},
		"short":                {func(b []byte) []byte { return b[:23] }, 1 << 30},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := parseSuperblock(tc.change(head(t)), tc.size); err == nil {
				t.Errorf("got %d", got)
			}
		})
	}
}

// FuzzParseSuperblock: whatever the host makes of the head, what is mapped is part of the disk.
func FuzzParseSuperblock(f *testing.F) {
	f.Add(head(f), int64(1<<30))
	f.Add([]byte("integrt"), int64(0))
	f.Fuzz(func(t *testing.T, raw []byte, size int64) {
		size &= maxSize - 1
		sectors, err := parseSuperblock(raw, size)
		if err == nil && (sectors < sector/512 || sectors > size/512 || sectors%(sector/512) != 0) {
			t.Errorf("%d sectors of a disk of %d bytes", sectors, size)
		}
	})
}
