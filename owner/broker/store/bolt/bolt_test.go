package bolt

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/owner/broker/store"
	"github.com/coffer-project/coffer/owner/broker/store/storetest"
)

func TestStore(t *testing.T) {
	file := filepath.Join(t.TempDir(), "new", "kbs.db")
	s, err := Open(file)
	if err != nil {
		t.Fatal(err)
	}
	storetest.Run(t, s, func() store.Store { return s })
	if err := s.Put(t.Context(), "resource/a/b/c", []byte("kept")); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(file); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("second process: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(file); err != nil {
		t.Fatal(err)
	}
	if data, err := s.Get(t.Context(), "resource/a/b/c"); err != nil || string(data) != "kept" {
		t.Errorf("after restart: %q, %v", data, err)
	}
	s.Close()
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(file); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("readable file: %v", err)
	}
}
