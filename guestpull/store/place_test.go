package store

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/integration/require"
)

// twoPlaces is a store with 64 MiB of memory and a disk of 128, which must be another file system for figures to differ.
func twoPlaces(t *testing.T) (s *Store, memory, disk string) {
	t.Helper()
	memory, disk = require.Tmpfs(t, unix.MS_NODEV, "size=64m"), require.Tmpfs(t, unix.MS_NODEV, "size=128m")
	s, err := Open(filepath.Join(memory, "image"), WithDisk(filepath.Join(disk, "image")))
	if err != nil {
		t.Fatal(err)
	}
	return s, memory, disk
}

// place fills a layer of an owner and tells in which of the folders it is.
func place(t *testing.T, s *Store, owner string, id digest.Digest) string {
	t.Helper()
	var calls atomic.Int32
	path, err := s.Layer(t.Context(), owner, id, write(&calls))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestPlace(t *testing.T) {
	for name, tc := range map[string]struct {
		sizes   map[digest.Digest]int64
		onDisk  bool
		wantErr string
	}{
		// Half of the memory is kept, and images are taken to be four times their packed size.
		"small":     {sizes: map[digest.Digest]int64{one: 4 << 20, two: 3 << 20}},
		"too much":  {sizes: map[digest.Digest]int64{one: 5 << 20, two: 4 << 20}, onDisk: true},
		"too large": {sizes: map[digest.Digest]int64{one: 200 << 20}, wantErr: "image needs at least 200 MiB, the scratch disk offers 1"},
	} {
		t.Run(name, func(t *testing.T) {
			s, memory, disk := twoPlaces(t)
			err := s.Place("a", tc.sizes)
			if tc.wantErr != "" {
				if !errors.Is(err, errdefs.ErrResourceExhausted) || !strings.Contains(err.Error(), tc.wantErr) {
					t.Fatalf("got %v", err)
				}
				if told := s.Explain("a", err).Error(); !strings.Contains(told, "scratch_mib") || strings.Contains(told, "default_memory") {
					t.Errorf("explained as %q", told)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := memory
			if tc.onDisk {
				want = disk
			}
			if path := place(t, s, "a", one); !strings.HasPrefix(path, want+"/") {
				t.Errorf("layer is at %s, want below %s", path, want)
			}
			// Who has it already needs no room for it, and finds it wherever it is.
			if err := s.Place("b", tc.sizes); err != nil {
				t.Fatal(err)
			}
			if path := place(t, s, "b", one); !strings.HasPrefix(path, want+"/") {
				t.Errorf("shared layer is at %s, want below %s", path, want)
			}
		})
	}
}

func TestMove(t *testing.T) {
	s, memory, disk := twoPlaces(t)
	if err := s.Place("a", map[digest.Digest]int64{one: 1, two: 1}); err != nil {
		t.Fatal(err)
	}
	full := errdefs.ErrResourceExhausted
	first := place(t, s, "a", one)
	if _, err := s.Layer(t.Context(), "a", two, func(context.Context, string) error { return full }); !errors.Is(err, full) {
		t.Fatal(err)
	}
	if !s.Move("a") {
		t.Fatal("there is no other place")
	}
	second := place(t, s, "a", two)
	if !strings.HasPrefix(first, memory) || !strings.HasPrefix(second, disk) || place(t, s, "a", one) != first {
		t.Errorf("layers are at %s and %s", first, second)
	}
	if s.Move("a") {
		t.Error("there is a third place")
	}
	if err := s.Release(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{first, second} {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s after its owner's end: %v", path, err)
		}
	}
	if len(s.placed) != 0 {
		t.Errorf("%d owners are remembered", len(s.placed))
	}
	if alone := open(t, t.TempDir()); alone.Move("a") {
		t.Error("a store without a disk has one")
	}
}
