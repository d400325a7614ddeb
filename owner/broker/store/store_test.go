package store

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/kbs"
)

var uri = kbs.ResourceURI{Repository: "default", Type: "key", Tag: "1"}

func open(t *testing.T) (*Store, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "resources")
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, dir
}

func TestLife(t *testing.T) {
	s, dir := open(t)
	ctx := t.Context()
	if _, err := s.Get(ctx, uri); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("get of nothing: %v", err)
	}
	if err := s.Delete(ctx, uri); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("delete of nothing: %v", err)
	}
	for _, data := range []string{"first", "second, longer", "3"} {
		if err := s.Put(ctx, uri, []byte(data)); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Get(ctx, uri); err != nil || string(got) != data {
			t.Errorf("got %q, %v", got, err)
		}
	}
	info, err := os.Stat(filepath.Join(dir, "default/key/1"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if list, err := s.List(ctx); err != nil || len(list) != 1 || list[0] != uri {
		t.Errorf("list %v, %v", list, err)
	}
	if entries, err := os.ReadDir(filepath.Join(dir, "default/key")); err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	if err := s.Delete(ctx, uri); err != nil {
		t.Error(err)
	}
	if _, err := s.Get(ctx, uri); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("get after delete: %v", err)
	}
}

func TestRefuses(t *testing.T) {
	s, dir := open(t)
	ctx := t.Context()
	outside := filepath.Join(filepath.Dir(dir), "outside")
	if err := os.MkdirAll(filepath.Join(outside, "key"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(outside, "key/1"), []byte("stolen"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	linked := kbs.ResourceURI{Repository: "link", Type: "key", Tag: "1"}
	if data, err := s.Get(ctx, linked); err == nil {
		t.Errorf("followed a link out: %q", data)
	}
	if err := s.Put(ctx, linked, []byte("x")); err == nil {
		t.Error("wrote through a link out")
	}
	escape := kbs.ResourceURI{Repository: "..", Type: "outside", Tag: "1"}
	for name, err := range map[string]error{
		"get":    second(s.Get(ctx, escape)),
		"put":    s.Put(ctx, escape, []byte("x")),
		"delete": s.Delete(ctx, escape),
		"empty":  s.Put(ctx, uri, nil),
		"huge":   s.Put(ctx, uri, make([]byte, kbs.MaxResource+1)),
	} {
		if !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := s.Put(ctx, uri, make([]byte, kbs.MaxResource)); err != nil {
		t.Errorf("largest: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "default/key/1"), make([]byte, kbs.MaxResource+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(ctx, uri); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("oversize file: %v", err)
	}
}

func second(_ []byte, err error) error { return err }

func TestOpenCleansAndChecks(t *testing.T) {
	s, dir := open(t)
	if err := s.Put(t.Context(), uri, []byte("x")); err != nil {
		t.Fatal(err)
	}
	leftover := filepath.Join(dir, "default/key", tempPrefix+"crash")
	if err := os.WriteFile(leftover, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	again, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if _, err := os.Stat(leftover); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("unfinished file survived: %v", err)
	}
	if data, err := again.Get(t.Context(), uri); err != nil || string(data) != "x" {
		t.Errorf("got %q, %v", data, err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("open directory: %v", err)
	}
}

// Readers see one of the written values whole, never a mixture.
func TestConcurrent(t *testing.T) {
	s, _ := open(t)
	ctx := t.Context()
	values := [][]byte{bytes.Repeat([]byte("a"), 100_000), bytes.Repeat([]byte("b"), 50_000)}
	if err := s.Put(ctx, uri, values[0]); err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	for _, value := range values {
		group.Go(func() {
			for range 10 {
				if err := s.Put(ctx, uri, value); err != nil {
					t.Error(err)
				}
			}
		})
		group.Go(func() {
			for range 50 {
				got, err := s.Get(ctx, uri)
				if err != nil || !(bytes.Equal(got, values[0]) || bytes.Equal(got, values[1])) {
					t.Errorf("%d bytes, %v", len(got), err)
				}
			}
		})
	}
	group.Wait()
}
