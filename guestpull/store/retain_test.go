package store

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/coffer-project/coffer/integration/require"
)

// retaining returns a store on a memory file system of its own, and fills of a given size.
func retaining(t *testing.T, size string) *Store {
	t.Helper()
	require.Root(t)
	s, err := Open(require.Tmpfs(t, 0, "size="+size), WithRetention(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func put(t *testing.T, s *Store, owner string, id digest.Digest, size int, calls *atomic.Int32) {
	t.Helper()
	_, err := s.Layer(t.Context(), owner, id, func(_ context.Context, dir string) error {
		calls.Add(1)
		return os.WriteFile(filepath.Join(dir, "f"), make([]byte, size), 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestIdleLayerIsUsedAgain: a container that comes back finds its layers, and they are owned again.
func TestIdleLayerIsUsedAgain(t *testing.T) {
	s := retaining(t, "64m")
	var calls atomic.Int32
	for _, owner := range []string{"a", "b", "c"} {
		put(t, s, owner, one, 1<<20, &calls)
		if err := s.Release(t.Context(), owner); err != nil {
			t.Fatal(err)
		}
		wantCount(t, s, 1)
	}
	if calls.Load() != 1 {
		t.Errorf("layer was filled %d times", calls.Load())
	}
	put(t, s, "d", one, 1<<20, &calls)
	s.expire(time.Now().Add(2 * time.Hour))
	wantCount(t, s, 1) // it has an owner
	if err := s.Release(t.Context(), "d"); err != nil {
		t.Fatal(err)
	}
	s.expire(time.Now().Add(59 * time.Minute))
	wantCount(t, s, 1)
	s.expire(time.Now().Add(61 * time.Minute))
	wantCount(t, s, 0)
}

// TestIdleLayersMakeWay: the one that was longest without owner goes first, those that are wanted stay, and an image that
// fits into the store alone is never refused for what nobody uses.
func TestIdleLayersMakeWay(t *testing.T) {
	s := retaining(t, "64m")
	var calls atomic.Int32
	three := digest.FromString("three")
	for _, id := range []digest.Digest{one, two, three} {
		put(t, s, "a"+id.Encoded(), id, 8<<20, &calls)
		if err := s.Release(t.Context(), "a"+id.Encoded()); err != nil {
			t.Fatal(err)
		}
	}
	wantCount(t, s, 3)
	// 24 MiB are used, 16 MiB in reserve: 24 MiB are free, and 28 MiB wanted.
	if err := s.Place("new", map[digest.Digest]int64{one: 8 << 20, digest.FromString("new"): 7 << 20}); err != nil {
		t.Fatal(err)
	}
	wantCount(t, s, 2)
	put(t, s, "b", one, 0, &calls)
	put(t, s, "b", three, 0, &calls)
	if calls.Load() != 3 {
		t.Errorf("the wrong layer went: %d fills", calls.Load())
	}
	if err := s.Place("new", map[digest.Digest]int64{digest.FromString("huge"): 60 << 20}); !errors.Is(err, errdefs.ErrResourceExhausted) {
		t.Errorf("owned layers made way: %v", err)
	}
	wantCount(t, s, 2)
}

// TestScarcity: layers without owners take no more than leaves a quarter free, and shrink while another is unpacked.
func TestScarcity(t *testing.T) {
	s := retaining(t, "64m")
	var calls atomic.Int32
	put(t, s, "a", one, 10<<20, &calls)
	put(t, s, "a", two, 30<<20, &calls)
	if err := s.Release(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if _, n := count(t, s); n == 2 {
		t.Error("40 of 64 MiB are taken by layers that nobody uses")
	}
	put(t, s, "b", one, 10<<20, &calls)
	if err := s.Release(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.memory.staging, "growing"), make([]byte, 30<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Room(s.memory.layers); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(s.memory.staging, "growing")); err != nil {
		t.Fatal(err)
	}
	wantCount(t, s, 0)
}
