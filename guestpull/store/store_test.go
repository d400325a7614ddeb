package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/integration/require"
)

var (
	one = digest.FromString("one")
	two = digest.FromString("two")
)

func open(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// write returns a fill that puts a file into the layer and counts its calls.
func write(calls *atomic.Int32) func(context.Context, string) error {
	return func(_ context.Context, dir string) error {
		calls.Add(1)
		return os.WriteFile(filepath.Join(dir, "f"), []byte("content"), 0o600)
	}
}

func count(t *testing.T, s *Store) (staged, published int) {
	t.Helper()
	for dir, n := range map[string]*int{s.memory.staging: &staged, s.memory.layers: &published} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		*n = len(entries)
	}
	return staged, published
}

func wantCount(t *testing.T, s *Store, published int) {
	t.Helper()
	staged, got := count(t, s)
	if staged != 0 || got != published {
		t.Errorf("store has %d staged and %d published layers, want 0 and %d", staged, got, published)
	}
}

func TestLayerLivesAsLongAsItsOwners(t *testing.T) {
	s := open(t, t.TempDir())
	var calls atomic.Int32
	for _, owner := range []string{"a", "b", "a"} {
		path, err := s.Layer(t.Context(), owner, one, write(&calls))
		if err != nil {
			t.Fatal(err)
		}
		if body, err := os.ReadFile(filepath.Join(path, "f")); err != nil || string(body) != "content" {
			t.Fatalf("layer has %q, %v", body, err)
		}
	}
	if calls.Load() != 1 {
		t.Errorf("layer was filled %d times", calls.Load())
	}
	for i, owner := range []string{"a", "nobody", "a"} {
		if err := s.Release(t.Context(), owner); err != nil {
			t.Fatal(err)
		}
		if wantCount(t, s, 1); t.Failed() {
			t.Fatalf("after release %d", i)
		}
	}
	if err := s.Release(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	wantCount(t, s, 0)
	if _, err := s.Layer(t.Context(), "c", one, write(&calls)); err != nil || calls.Load() != 2 {
		t.Errorf("after its end: %v, %d fills", err, calls.Load())
	}
}

func TestFailedFillLeavesNothing(t *testing.T) {
	s := open(t, t.TempDir())
	boom := errors.New("boom")
	_, err := s.Layer(t.Context(), "a", one, func(_ context.Context, dir string) error {
		if err := os.MkdirAll(filepath.Join(dir, "x/y"), 0o755); err != nil {
			return err
		}
		return boom
	})
	if !errors.Is(err, boom) {
		t.Fatalf("got %v", err)
	}
	wantCount(t, s, 0)
}

func TestOneFillsForAll(t *testing.T) {
	s := open(t, t.TempDir())
	var (
		calls atomic.Int32
		wg    sync.WaitGroup
	)
	started, proceed := make(chan struct{}), make(chan struct{})
	wg.Go(func() {
		if _, err := s.Layer(t.Context(), "first", one, func(ctx context.Context, dir string) error {
			close(started)
			<-proceed
			return write(&calls)(ctx, dir)
		}); err != nil {
			t.Error(err)
		}
	})
	<-started
	for i := range 8 {
		wg.Go(func() {
			if _, err := s.Layer(t.Context(), fmt.Sprint(i), one, write(&calls)); err != nil {
				t.Error(err)
			}
		})
	}
	// One who does not want to wait any more is let go, and another layer is not held up.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Layer(ctx, "impatient", one, write(&calls)); !errors.Is(err, context.Canceled) {
		t.Errorf("impatient: %v", err)
	}
	var other atomic.Int32
	if _, err := s.Layer(t.Context(), "other", two, write(&other)); err != nil {
		t.Errorf("other layer: %v", err)
	}
	close(proceed)
	wg.Wait()
	if calls.Load() != 1 {
		t.Errorf("layer was filled %d times", calls.Load())
	}
}

func TestNextInLineTakesOver(t *testing.T) {
	s := open(t, t.TempDir())
	started, fail := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := s.Layer(t.Context(), "first", one, func(context.Context, string) error {
			close(started)
			<-fail
			return context.Canceled
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("first: %v", err)
		}
	})
	<-started
	var calls atomic.Int32
	wg.Go(func() {
		if _, err := s.Layer(t.Context(), "second", one, write(&calls)); err != nil {
			t.Errorf("second: %v", err)
		}
	})
	close(fail)
	wg.Wait()
	if calls.Load() != 1 {
		t.Errorf("second filled %d times", calls.Load())
	}
	wantCount(t, s, 1)
}

func TestOpenClearsWhatACrashLeft(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	var calls atomic.Int32
	if _, err := s.Layer(t.Context(), "a", one, write(&calls)); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(s.memory.staging, "layer-x/etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	wantCount(t, s, 0)
	if _, err := s.Layer(t.Context(), "a", one, write(&calls)); err != nil || calls.Load() != 2 {
		t.Errorf("after a restart: %v, %d fills", err, calls.Load())
	}
}

func TestMalformedID(t *testing.T) {
	s := open(t, t.TempDir())
	for _, id := range []digest.Digest{"", "sha256:../../x", "nonsense"} {
		if _, err := s.Layer(t.Context(), "a", id, nil); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%q: %v", id, err)
		}
	}
}

func TestPlaceInMemory(t *testing.T) {
	dir := require.Tmpfs(t, unix.MS_NODEV, "size=64m")
	s := open(t, dir)
	if !s.NoDevices() {
		t.Error("nodev mount is not seen")
	}
	// A quarter of a small file system stays free.
	if free, err := s.Free(s.memory.layers); err != nil || free < 40<<20 || free > 48<<20 {
		t.Errorf("free is %d, %v", free, err)
	}
	if err := s.Place("a", map[digest.Digest]int64{one: 20 << 20, two: 20 << 20}); err != nil {
		t.Errorf("40 of 64 MiB: %v", err)
	}
	err := s.Place("a", map[digest.Digest]int64{one: 30 << 20, two: 30 << 20})
	if !errors.Is(err, errdefs.ErrResourceExhausted) || !strings.Contains(err.Error(), "needs at least 60 MiB") {
		t.Errorf("60 of 64 MiB: %v", err)
	}
	var calls atomic.Int32
	if _, err := s.Layer(t.Context(), "a", one, write(&calls)); err != nil {
		t.Fatal(err)
	}
	if err := s.Place("a", map[digest.Digest]int64{one: 30 << 20, two: 30 << 20}); err != nil {
		t.Errorf("with one layer there already: %v", err)
	}
}

// TestOpenHidesItselfOnly: a container's user walks through the folder in which the store lies, not through the store.
func TestOpenHidesItselfOnly(t *testing.T) {
	base := filepath.Join(t.TempDir(), "run")
	dir := filepath.Join(base, "image")
	if _, err := Open(dir); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]os.FileMode{base: 0o755, dir: 0o700} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("mode of %s is %o, want %o", path, got, want)
		}
	}
}
