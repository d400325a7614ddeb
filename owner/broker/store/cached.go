package store

import (
	"context"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

// maxCached bounds the entries that Cached remembers. Policies and reference values are a few dozen.
const maxCached = 1024

// cachedStore remembers values for a short time.
type cachedStore struct {
	Store
	life time.Duration
	now  func() time.Time

	mu      sync.Mutex
	entries map[string]cachedEntry
}

type cachedEntry struct {
	data  []byte
	err   error // NotFound or nil
	until time.Time
}

// Cached returns a Store that remembers what it read from inner, also that there was nothing, for life: so long may a change by another
// instance go unnoticed. Changes through it are seen at once. It is for small values that are read at each request: policies and reference
// values. When the backend fails, nothing older than life is used.
func Cached(inner Store, life time.Duration, now func() time.Time) Store {
	return &cachedStore{Store: inner, life: life, now: now, entries: map[string]cachedEntry{}}
}

// Get implements Store. Callers share the value and must not change it.
func (c *cachedStore) Get(ctx context.Context, name string) ([]byte, error) {
	c.mu.Lock()
	e, ok := c.entries[name]
	c.mu.Unlock()
	now := c.now()
	if ok && now.Before(e.until) {
		return e.data, e.err
	}
	data, err := c.Store.Get(ctx, name)
	if err != nil && !errdefs.IsNotFound(err) {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.entries) >= maxCached {
		clear(c.entries)
	}
	c.entries[name] = cachedEntry{data: data, err: err, until: now.Add(c.life)}
	return data, err
}

// Put implements Store.
func (c *cachedStore) Put(ctx context.Context, name string, data []byte) error {
	defer c.forget(name)
	return c.Store.Put(ctx, name, data)
}

// Create implements Store.
func (c *cachedStore) Create(ctx context.Context, name string, data []byte) error {
	defer c.forget(name)
	return c.Store.Create(ctx, name, data)
}

// Delete implements Store.
func (c *cachedStore) Delete(ctx context.Context, name string) error {
	defer c.forget(name)
	return c.Store.Delete(ctx, name)
}

func (c *cachedStore) forget(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.entries, name)
}
