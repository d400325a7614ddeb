package kbs

import (
	"context"
	"errors"
	"sync"
)

// flight runs one costly call at a time and keeps its result. Unlike sync.Once it honours each caller's context: a waiter leaves when
// its own context ends, and when the caller that runs the call gives up, the next waiter takes over.
type flight[T any] struct {
	turn chan struct{} // holds the one token of whoever may run the call

	mu    sync.Mutex
	runs  uint64 // finished calls
	value T
	ok    bool
	err   error // of the last call, where it failed
}

func newFlight[T any]() *flight[T] {
	f := &flight[T]{turn: make(chan struct{}, 1)}
	f.turn <- struct{}{}
	return f
}

// do returns the kept value where usable says yes, and otherwise runs call. Callers that waited for a call that failed share its error,
// so that n waiters do not make n attempts; errors of the runner's own context are not shared.
func (f *flight[T]) do(ctx context.Context, usable func(T) bool, call func(context.Context) (T, error)) (T, error) {
	var none T
	value, ok, before := f.kept(usable)
	if ok {
		return value, nil
	}
	select {
	case <-f.turn:
	case <-ctx.Done():
		return none, ctx.Err()
	}
	defer func() { f.turn <- struct{}{} }()

	value, ok, after := f.kept(usable)
	if ok {
		return value, nil
	}
	if err := f.shared(before, after); err != nil {
		return none, err
	}
	value, err := call(ctx)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.runs++
	f.value, f.ok, f.err = value, err == nil, err
	if err != nil {
		return none, err
	}
	return value, nil
}

func (f *flight[T]) kept(usable func(T) bool) (T, bool, uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var none T
	if f.ok && usable(f.value) {
		return f.value, true, f.runs
	}
	return none, false, f.runs
}

func (f *flight[T]) shared(before, after uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if before == after || f.err == nil || errors.Is(f.err, context.Canceled) || errors.Is(f.err, context.DeadlineExceeded) {
		return nil
	}
	return f.err
}
