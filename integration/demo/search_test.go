package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

func TestContainsFindsMarkerOnBlockBoundary(t *testing.T) {
	t.Parallel()
	marker := []byte("0123456789abcdef")
	for name, offset := range map[string]int{
		"start": 0, "inside": 4096, "before boundary": 1<<20 - 1, "on boundary": 1 << 20,
		"across": 1<<20 + 8, "second block": 2<<20 + 3, "end": 3<<20 - len(marker),
	} {
		t.Run(name, func(t *testing.T) {
			content := bytes.Repeat([]byte{'x'}, 3<<20)
			copy(content[offset:], marker)
			path := filepath.Join(t.TempDir(), "file")
			if err := os.WriteFile(path, content, 0o600); err != nil {
				t.Fatal(err)
			}
			found, err := contains(path, marker)
			if err != nil || !found {
				t.Fatalf("contains = %v, %v; want true", found, err)
			}
			hits, _, err := countHits([]byte("not in there"), filepath.Dir(path))
			if err != nil || hits != 0 {
				t.Fatalf("hits of a foreign marker = %d, %v; want 0", hits, err)
			}
		})
	}
}
