package image

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/containerd/log"
)

// maxAbandoned bounds the pulls that go on although nobody waits for them any more.
const maxAbandoned = 8

// Background lets pulls outlive the calls that began them. Whoever creates a container gives up waiting sooner or later and
// tries again with a new one, whose pull finds the layers that are here and waits for those that are on their way. A pull
// ends when it is done, after a limit, or with the pod; of too many that nobody waits for, the oldest is given up.
//
//	running --done--> delivered --Release--> gone
//	   |  ^                                   ^
//	   |  +--same container asks again--+     |
//	   +--caller leaves--> abandoned ---+--done, and Release--+
type Background struct {
	life   context.Context // the pod's: pulls belong to no call
	puller interface {
		Pull(ctx context.Context, req Request) (*Image, error)
		Release(ctx context.Context, containerID string) error
	}
	limit time.Duration

	mu      sync.Mutex
	flights []*running // oldest first
}

// running is a pull on a goroutine of its own. The lock guards the flags.
type running struct {
	req    Request
	cancel context.CancelFunc
	ends   time.Time
	done   chan struct{}
	img    *Image // valid once done is closed, like err
	err    error

	waiting  bool // a call waits for it
	released bool // its container is gone
	finished bool // from here on, Release gives back what the pull has got
}

// NewBackground makes pulls by p live as long as life, and no longer than limit.
func NewBackground(life context.Context, p *Puller, limit time.Duration) *Background {
	return &Background{life: life, puller: p, limit: limit}
}

// Pull is Puller's. When ctx ends, it returns at once, and the pull goes on; see Background.
func (b *Background) Pull(ctx context.Context, req Request) (*Image, error) {
	f, err := b.join(ctx, req)
	if err != nil {
		return nil, err
	}
	select {
	case <-f.done:
		b.mu.Lock()
		b.forget(f)
		b.mu.Unlock()
		return f.img, f.err
	case <-ctx.Done():
	}
	b.abandon(f)
	left := time.Until(f.ends).Round(time.Second)
	if left <= 0 {
		return nil, fmt.Errorf("pull image %s: %w", req.Reference, ctx.Err())
	}
	log.G(ctx).WithFields(log.Fields{"container": req.ContainerID, "image": req.Reference, "limit": left}).Info("image pull goes on without its caller")
	return nil, fmt.Errorf("pull image %s: the caller's time is over; the pull goes on for up to %s, and the next container with this image joins it: %w",
		req.Reference, left, ctx.Err())
}

// join finds the pull that was begun for this very request, or begins one.
func (b *Background) join(ctx context.Context, req Request) (*running, error) {
	for {
		b.mu.Lock()
		var other *running
		for _, f := range b.flights {
			if f.req == req && !f.waiting && !f.released {
				f.waiting = true
				b.mu.Unlock()
				return f, nil
			}
			if f.req.ContainerID == req.ContainerID && !f.waiting {
				other = f
			}
		}
		if other == nil {
			f := b.begin(ctx, req)
			b.mu.Unlock()
			return f, nil
		}
		b.mu.Unlock()
		// An earlier container of this name left a pull, and what one holds cannot be told from what the other holds.
		other.cancel()
		select {
		case <-other.done:
			b.mu.Lock()
			b.forget(other)
			b.mu.Unlock()
		case <-ctx.Done():
			return nil, fmt.Errorf("pull image %s: %w", req.Reference, ctx.Err())
		}
	}
}

// begin starts a pull. The lock is held.
func (b *Background) begin(ctx context.Context, req Request) *running {
	life, cancel := context.WithTimeout(log.WithLogger(b.life, log.G(ctx)), b.limit)
	f := &running{req: req, cancel: cancel, ends: time.Now().Add(b.limit), done: make(chan struct{}), waiting: true}
	b.flights = append(b.flights, f)
	go func() {
		defer cancel()
		f.img, f.err = b.puller.Pull(life, req)
		b.mu.Lock()
		gone := f.released
		f.finished = true
		if gone || (f.err != nil && !f.waiting) {
			b.forget(f)
		}
		b.mu.Unlock()
		if gone {
			b.giveBack(life, req.ContainerID)
		}
		close(f.done)
	}()
	return f
}

// giveBack releases what a pull has got for a container that is gone.
func (b *Background) giveBack(ctx context.Context, containerID string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	if err := b.puller.Release(ctx, containerID); err != nil {
		log.G(ctx).WithError(err).WithField("container", containerID).Error("image of a container that is gone was not released")
	}
}

// abandon leaves a pull to itself.
func (b *Background) abandon(f *running) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f.waiting = false
	alone := 0
	for _, other := range slices.Backward(b.flights) {
		if other.waiting {
			continue
		}
		if alone++; alone > maxAbandoned {
			other.cancel()
		}
	}
}

// Release is Puller's. What a pull that still goes on will have got for the container is released when it ends.
func (b *Background) Release(ctx context.Context, containerID string) error {
	b.mu.Lock()
	busy := false
	for _, f := range slices.Clone(b.flights) {
		if f.req.ContainerID != containerID {
			continue
		}
		if f.finished {
			b.forget(f)
			continue
		}
		busy, f.released = true, true
	}
	b.mu.Unlock()
	if busy {
		return nil
	}
	return b.puller.Release(ctx, containerID)
}

// forget drops a pull. The lock is held.
func (b *Background) forget(f *running) {
	b.flights = slices.DeleteFunc(b.flights, func(other *running) bool { return other == f })
}
