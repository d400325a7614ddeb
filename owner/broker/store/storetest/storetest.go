// Package storetest holds what every store.Store must do.
package storetest

import (
	"bytes"
	"errors"
	"slices"
	"sync"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/owner/broker/store"
)

// Run checks one kind of store. open returns a second handle of the same entries, as another process would have it, or the same handle
// where only one process can.
func Run(t *testing.T, s store.Store, open func() store.Store) {
	t.Run("life", func(t *testing.T) { life(t, s) })
	t.Run("names", func(t *testing.T) { names(t, s) })
	t.Run("list", func(t *testing.T) { list(t, s) })
	t.Run("create", func(t *testing.T) { create(t, s, open()) })
	t.Run("whole values", func(t *testing.T) { whole(t, s, open()) })
}

func life(t *testing.T, s store.Store) {
	t.Helper()
	ctx := t.Context()
	const name = "resource/default/key/1"
	if _, err := s.Get(ctx, name); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("get of nothing: %v", err)
	}
	if err := s.Delete(ctx, name); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("delete of nothing: %v", err)
	}
	for _, data := range []string{"first", "second, longer", "\x00\xff"} {
		if err := s.Put(ctx, name, []byte(data)); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Get(ctx, name); err != nil || string(got) != data {
			t.Errorf("got %q, %v", got, err)
		}
	}
	if err := s.Put(ctx, name, make([]byte, 1<<20)); err != nil {
		t.Errorf("large value: %v", err)
	}
	for what, data := range map[string][]byte{"empty": nil, "huge": make([]byte, store.MaxValue+1)} {
		if err := s.Put(ctx, name, data); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := s.Delete(ctx, name); err != nil {
		t.Error(err)
	}
	if _, err := s.Get(ctx, name); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("get after delete: %v", err)
	}
}

func names(t *testing.T, s store.Store) {
	t.Helper()
	ctx := t.Context()
	for _, name := range []string{"", "x", "resource/../x", "resource//x", "/resource/x", "resource/.x", "resource/a b", "resource/x/", "a/b/c/d/e/f/g", "resource/a\x00"} {
		_, getErr := s.Get(ctx, name)
		for what, err := range map[string]error{
			"get": getErr, "put": s.Put(ctx, name, []byte("x")), "create": s.Create(ctx, name, []byte("x")), "delete": s.Delete(ctx, name),
		} {
			if !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Errorf("%s of %q: %v", what, name, err)
			}
		}
	}
}

func list(t *testing.T, s store.Store) {
	t.Helper()
	ctx := t.Context()
	all := []string{"policy/resource", "session/60/a", "session/60/b", "session/7/c"}
	for _, name := range all {
		if err := s.Put(ctx, name, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	for folder, want := range map[string][]string{"session": all[1:], "session/60": all[1:3], "policy": all[:1], "none": {}, "sess": {}} {
		if got, err := s.List(ctx, folder); err != nil || !slices.Equal(got, want) {
			t.Errorf("list of %s: %v, %v", folder, got, err)
		}
	}
	for _, name := range all {
		if err := s.Delete(ctx, name); err != nil {
			t.Error(err)
		}
	}
	if got, err := s.List(ctx, "session"); err != nil || len(got) != 0 {
		t.Errorf("list after delete: %v, %v", got, err)
	}
}

// create lets two processes race for one name.
func create(t *testing.T, s, other store.Store) {
	t.Helper()
	ctx := t.Context()
	for _, name := range []string{"key/data", "session/60/one"} {
		var group sync.WaitGroup
		var mu sync.Mutex
		made := map[string]int{}
		for i := range 8 {
			group.Go(func() {
				value := string(rune('a' + i))
				err := []store.Store{s, other}[i%2].Create(ctx, name, []byte(value))
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					made[value]++
				} else if !errors.Is(err, errdefs.ErrAlreadyExists) {
					t.Errorf("create: %v", err)
				}
			})
		}
		group.Wait()
		got, err := other.Get(ctx, name)
		if err != nil || len(made) != 1 || made[string(got)] != 1 {
			t.Errorf("created %v, kept %q, %v", made, got, err)
		}
		if err := s.Delete(ctx, name); err != nil {
			t.Error(err)
		}
	}
}

// whole checks that readers see one of the written values, never a mixture, and afterwards the same in both processes.
func whole(t *testing.T, s, other store.Store) {
	t.Helper()
	ctx := t.Context()
	const name = "resource/default/key/shared"
	values := [][]byte{bytes.Repeat([]byte("a"), 100_000), bytes.Repeat([]byte("b"), 50_000)}
	if err := s.Put(ctx, name, values[0]); err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	for i, value := range values {
		writer, reader := s, other
		if i == 1 {
			writer, reader = other, s
		}
		group.Go(func() {
			for range 5 {
				if err := writer.Put(ctx, name, value); err != nil {
					t.Error(err)
				}
			}
		})
		group.Go(func() {
			for range 25 {
				got, err := reader.Get(ctx, name)
				if err != nil || !bytes.Equal(got, values[0]) && !bytes.Equal(got, values[1]) {
					t.Errorf("%d bytes, %v", len(got), err)
				}
			}
		})
	}
	group.Wait()
	one, err := s.Get(ctx, name)
	two, otherErr := other.Get(ctx, name)
	if err != nil || otherErr != nil || !bytes.Equal(one, two) {
		t.Errorf("%d and %d bytes, %v, %v", len(one), len(two), err, otherErr)
	}
}
