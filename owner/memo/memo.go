// Package memo remembers what was costly to find out, up to a number of things. It never decides whether what it remembers still holds:
// callers ask about times and revocations each time, and put in only what was found good.
package memo

import "sync"

// Map remembers values by key. Calls may be concurrent. It must not be copied.
type Map[K comparable, V any] struct {
	half int

	mu           sync.Mutex
	young, older map[K]V
}

// New returns a Map of at most limit values, 2 at least. Those that were not asked for lately are forgotten first.
func New[K comparable, V any](limit int) *Map[K, V] {
	return &Map[K, V]{half: max(1, limit/2), young: map[K]V{}}
}

// Get returns what was put under a key, unless it is forgotten.
func (m *Map[K, V]) Get(key K) (V, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if value, ok := m.young[key]; ok {
		return value, true
	}
	value, ok := m.older[key]
	if ok {
		m.put(key, value)
	}
	return value, ok
}

// Put remembers a value. It replaces an older one of the same key.
func (m *Map[K, V]) Put(key K, value V) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.put(key, value)
}

// put begins a new generation when half of the values are young: what is in neither of two generations was not asked for in between.
func (m *Map[K, V]) put(key K, value V) {
	if _, ok := m.young[key]; !ok && len(m.young) >= m.half {
		m.older, m.young = m.young, map[K]V{}
	}
	m.young[key] = value
}
