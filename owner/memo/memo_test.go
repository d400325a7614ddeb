package memo

import (
	"sync"
	"testing"
)

func TestMap(t *testing.T) {
	m := New[int, string](4)
	if _, ok := m.Get(1); ok {
		t.Error("a value appeared from nowhere")
	}
	m.Put(1, "a")
	m.Put(1, "b")
	for key := range 100 {
		if got, ok := m.Get(1); !ok || got != "b" {
			t.Fatalf("value in use after %d others: %q, %v", key, got, ok)
		}
		m.Put(100+key, "other")
		if n := len(m.young) + len(m.older); n > 4 {
			t.Fatalf("%d values, want at most 4", n)
		}
	}
	if _, ok := m.Get(100); ok {
		t.Error("a value that nobody asked for was kept")
	}
}

func TestMapOfOne(t *testing.T) {
	m := New[int, int](1)
	m.Put(1, 1)
	m.Put(2, 2)
	if got, ok := m.Get(2); !ok || got != 2 {
		t.Errorf("got %d, %v", got, ok)
	}
}

func TestMapConcurrently(t *testing.T) {
	m := New[int, int](8)
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for key := range 1000 {
				m.Put(key%16, key%16)
				if got, ok := m.Get(key % 16); ok && got != key%16 {
					t.Errorf("key %d has %d", key%16, got)
				}
			}
		})
	}
	group.Wait()
}
