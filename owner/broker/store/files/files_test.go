package files

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/owner/broker/store"
	"github.com/coffer-project/coffer/owner/broker/store/storetest"
)

const name = "resource/default/key/1"

func open(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestStore(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	storetest.Run(t, open(t, dir), func() store.Store { return open(t, dir) })
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err == nil && entry.Name()[0] == '.' {
			t.Errorf("left behind: %s", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestModeAndLinks(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	s := open(t, dir)
	if err := s.Put(t.Context(), name, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	outside := filepath.Join(filepath.Dir(dir), "outside")
	if err := os.MkdirAll(outside, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(outside, "1"), []byte("stolen"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, "resource/link")); err != nil {
		t.Fatal(err)
	}
	if data, err := s.Get(t.Context(), "resource/link/1"); err == nil {
		t.Errorf("followed a link out: %q", data)
	}
	if err := s.Put(t.Context(), "resource/link/1", []byte("x")); err == nil {
		t.Error("wrote through a link out")
	}
	if err := os.WriteFile(filepath.Join(dir, name), make([]byte, store.MaxValue+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(t.Context(), name); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("oversize file: %v", err)
	}
}

// What a crash left goes at the next start; what another process is writing stays.
func TestOpenCleansAndChecks(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	s := open(t, dir)
	if err := s.Put(t.Context(), name, []byte("x")); err != nil {
		t.Fatal(err)
	}
	old, young := filepath.Join(dir, "resource/default/key", tempPrefix+"crash"), filepath.Join(dir, "resource/default/key", tempPrefix+"busy")
	for _, file := range []string{old, young} {
		if err := os.WriteFile(file, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	past := time.Now().Add(-2 * tempLife)
	if err := os.Chtimes(old, past, past); err != nil {
		t.Fatal(err)
	}
	again := open(t, dir)
	if _, err := os.Stat(old); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("unfinished file survived: %v", err)
	}
	if _, err := os.Stat(young); err != nil {
		t.Errorf("another process's file: %v", err)
	}
	if data, err := again.Get(t.Context(), name); err != nil || string(data) != "x" {
		t.Errorf("got %q, %v", data, err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("open directory: %v", err)
	}
}
