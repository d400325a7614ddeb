package store_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/owner/broker/store"
	"github.com/coffer-project/coffer/owner/broker/store/files"
	"github.com/coffer-project/coffer/owner/broker/store/storetest"
)

func openFiles(t *testing.T) (store.Store, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "store")
	s, err := files.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, dir
}

func master(t *testing.T, fill byte) store.Wrapper {
	t.Helper()
	key, err := store.NewMasterKey(bytes.Repeat([]byte{fill}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func sealed(t *testing.T, inner store.Store, key store.Wrapper) store.Store {
	t.Helper()
	s, err := store.Sealed(t.Context(), inner, key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSealed(t *testing.T) {
	inner, dir := openFiles(t)
	s := sealed(t, inner, master(t, 1))
	ctx := t.Context()
	if err := s.Put(ctx, "resource/default/key/1", []byte("topsecret")); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(ctx, "resource/default/key/2", []byte("other")); err != nil {
		t.Fatal(err)
	}
	one := filepath.Join(dir, "resource/default/key/1")
	raw, err := os.ReadFile(one)
	if err != nil || bytes.Contains(raw, []byte("secret")) {
		t.Fatalf("at rest: %q, %v", raw, err)
	}
	// Another instance opens the same data key.
	if got, err := sealed(t, inner, master(t, 1)).Get(ctx, "resource/default/key/1"); err != nil || string(got) != "topsecret" {
		t.Errorf("other instance: %q, %v", got, err)
	}
	if _, err := store.Sealed(ctx, inner, master(t, 2)); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("other master key: %v", err)
	}
	two, err := os.ReadFile(filepath.Join(dir, "resource/default/key/2"))
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(raw)
	flipped[len(flipped)/2] ^= 1
	for name, content := range map[string][]byte{"moved": two, "flipped": flipped, "cut": raw[:8], "plain": []byte("topsecret")} {
		if err := os.WriteFile(one, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Get(ctx, "resource/default/key/1"); !errors.Is(err, errdefs.ErrFailedPrecondition) || got != nil {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestRewrap(t *testing.T) {
	inner, _ := openFiles(t)
	ctx := t.Context()
	running := sealed(t, inner, master(t, 1))
	if err := running.Put(ctx, "resource/a/b/c", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := store.Rewrap(ctx, inner, master(t, 3), master(t, 2)); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("wrong old key: %v", err)
	}
	if err := store.Rewrap(ctx, inner, master(t, 1), master(t, 2)); err != nil {
		t.Fatal(err)
	}
	for what, s := range map[string]store.Store{"running": running, "restarted": sealed(t, inner, master(t, 2))} {
		if got, err := s.Get(ctx, "resource/a/b/c"); err != nil || string(got) != "x" {
			t.Errorf("%s: %q, %v", what, got, err)
		}
	}
	if _, err := store.Sealed(ctx, inner, master(t, 1)); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("old master key: %v", err)
	}
}

func TestSealedIsAStore(t *testing.T) {
	inner, _ := openFiles(t)
	s := sealed(t, inner, master(t, 1))
	if err := inner.Delete(t.Context(), "key/data"); err != nil { // the suite uses the name
		t.Fatal(err)
	}
	storetest.Run(t, s, func() store.Store { return s })
}

// failing is a store that can go down, and that counts.
type failing struct {
	store.Store
	down bool
	gets int
}

func (f *failing) Get(ctx context.Context, name string) ([]byte, error) {
	f.gets++
	if f.down {
		return nil, errdefs.ErrUnavailable
	}
	return f.Store.Get(ctx, name)
}

func TestCached(t *testing.T) {
	files, _ := openFiles(t)
	inner := &failing{Store: files}
	now := time.Unix(1000, 0)
	s := store.Cached(inner, time.Second, func() time.Time { return now })
	ctx := t.Context()
	get := func(want string, wantErr error, gets int) {
		t.Helper()
		inner.gets = 0
		got, err := s.Get(ctx, "policy/resource")
		if string(got) != want || !errors.Is(err, wantErr) || inner.gets != gets {
			t.Errorf("got %q, %v after %d reads", got, err, inner.gets)
		}
	}
	get("", errdefs.ErrNotFound, 1)
	get("", errdefs.ErrNotFound, 0)
	if err := s.Put(ctx, "policy/resource", []byte("one")); err != nil {
		t.Fatal(err)
	}
	get("one", nil, 1) // an own change is seen at once
	if err := files.Put(ctx, "policy/resource", []byte("two")); err != nil {
		t.Fatal(err)
	}
	get("one", nil, 0)
	now = now.Add(time.Second)
	get("two", nil, 1)
	inner.down = true
	get("two", nil, 0)
	now = now.Add(time.Second)
	get("", errdefs.ErrUnavailable, 1) // nothing stale is used
	inner.down = false
	get("two", nil, 1)
	if err := s.Delete(ctx, "policy/resource"); err != nil {
		t.Fatal(err)
	}
	get("", errdefs.ErrNotFound, 1)
}

func TestSessions(t *testing.T) {
	inner, dir := openFiles(t)
	s := store.Sessions{Store: inner}
	ctx := t.Context()
	ends := time.Unix(1030, 0)
	if err := s.Create(ctx, "a", ends, "token"); err != nil {
		t.Fatal(err)
	}
	if err := s.Create(ctx, "a", ends, "other"); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("second token: %v", err)
	}
	if err := s.Create(ctx, "later", ends.Add(time.Hour), "token"); err != nil {
		t.Fatal(err)
	}
	if err := s.Expire(ctx, ends); err != nil {
		t.Error(err)
	}
	if token, err := s.Token(ctx, "a", ends); err != nil || token != "token" {
		t.Errorf("before its end: %q, %v", token, err)
	}
	if err := s.Expire(ctx, ends.Add(time.Minute)); err != nil {
		t.Error(err)
	}
	if _, err := s.Token(ctx, "a", ends); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("after its end: %v", err)
	}
	left, err := inner.List(ctx, store.KindSession)
	if err != nil || len(left) != 1 {
		t.Errorf("left %v, %v", left, err)
	}
	folders, err := os.ReadDir(filepath.Join(dir, store.KindSession))
	if err != nil || slices.ContainsFunc(folders, func(e os.DirEntry) bool { return e.Name() == "1080" }) {
		t.Errorf("folders %v, %v", folders, err)
	}
}
