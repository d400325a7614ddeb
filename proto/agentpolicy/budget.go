package agentpolicy

import (
	"context"
	"runtime/metrics"
	"sync/atomic"
	"time"
)

// Limits of one decision. Policies that Kata's tools write need some ten thousand steps.
const (
	maxSteps = 2_000_000
	// maxHeap is by how much the whole program may grow meanwhile, in bytes. Other work counts, too: it is far above both.
	maxHeap = 128 << 20
	maxTime = 30 * time.Second
	// checkEvery is the number of steps between looks at clock and memory.
	checkEvery = 64
)

// budget ends a decision that uses more than it may.
type budget struct {
	ctx    context.Context
	ends   time.Time
	heap   uint64
	steps  int
	ended  atomic.Bool
	reason string
}

func newBudget(ctx context.Context) *budget {
	return &budget{ctx: ctx, ends: time.Now().Add(maxTime), heap: heapBytes()}
}

// Cancel implements topdown.Cancel.
func (b *budget) Cancel() { b.ended.Store(true) }

// Cancelled implements topdown.Cancel. It is asked at every step, by the one goroutine that evaluates.
func (b *budget) Cancelled() bool {
	b.steps++
	if b.steps%checkEvery == 0 {
		b.look()
	}
	return b.ended.Load()
}

func (b *budget) look() {
	switch {
	case b.steps > maxSteps:
		b.reason = "it takes too many steps"
	case time.Now().After(b.ends):
		b.reason = "it takes too long"
	case heapBytes() > b.heap+maxHeap:
		b.reason = "it takes too much memory"
	case b.ctx.Err() != nil:
		b.reason = "its caller has left"
	default:
		return
	}
	b.ended.Store(true)
}

func heapBytes() uint64 {
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(sample)
	if sample[0].Value.Kind() != metrics.KindUint64 {
		return 0
	}
	return sample[0].Value.Uint64()
}
