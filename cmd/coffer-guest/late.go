package main

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/log"

	"github.com/coffer-project/coffer/guestpull/boot"
	"github.com/coffer-project/coffer/guestpull/container"
	"github.com/coffer-project/coffer/guestpull/image"
)

// lateImages is the puller before it is known how to pull.
type lateImages struct {
	limit  time.Duration // of one pull
	known  chan struct{}
	images container.Images // valid once known is closed
}

func newLateImages(limit time.Duration) *lateImages {
	return &lateImages{limit: limit, known: make(chan struct{})}
}

// set makes the puller known. Call it once.
func (l *lateImages) set(images container.Images) {
	l.images = images
	close(l.known)
}

// Pull waits until the puller is known. It takes no longer than the limit, whatever the host would wait.
func (l *lateImages) Pull(ctx context.Context, req image.Request) (*image.Image, error) {
	caller := ctx
	ctx, cancel := context.WithTimeout(ctx, l.limit)
	defer cancel()
	select {
	case <-l.known:
		img, err := l.images.Pull(ctx, req)
		if err != nil && ctx.Err() != nil && caller.Err() == nil {
			err = fmt.Errorf("not done within %s (kernel parameter agent.image_pull_timeout): %w", l.limit, err)
		}
		return img, err
	case <-ctx.Done():
		return nil, fmt.Errorf("pull image %s: wait for the measured document: %w", req.Reference, ctx.Err())
	}
}

// Release has nothing to do before the first pull.
func (l *lateImages) Release(ctx context.Context, containerID string) error {
	select {
	case <-l.known:
		return l.images.Release(ctx, containerID)
	default:
		return nil
	}
}

// scratchDir is where the scratch disk is mounted.
const scratchDir = "/run/scratch"

// noImages is the puller of a guest that lacks something.
type noImages struct{ err error }

// Pull says what.
func (n noImages) Pull(context.Context, image.Request) (*image.Image, error) { return nil, n.err }

// Release has nothing to do.
func (noImages) Release(context.Context, string) error { return nil }

// configure reads the measured document while the host is already served: its disk may appear late, and only containers need it. A
// guest whose document or whose machine is bad must not go on with half of it.
func configure(ctx context.Context, m *boot.Machine, s settings, images *lateImages) {
	begin := time.Now()
	document, err := m.InitData(ctx)
	if err != nil {
		m.PowerOff(err)
	}
	if err := m.WaitComplete(ctx); err != nil {
		m.PowerOff(err)
	}
	if document != nil {
		s.initdata = document.Raw
	}
	found, err := m.Scratch(ctx, scratchDir)
	if found && err == nil {
		s.scratch = scratchDir
	}
	s.place.Set(s.scratch, err)
	if err != nil {
		// The machine is sound, and whoever creates a container learns why there is none.
		log.G(ctx).WithError(err).Error("pod has no scratch disk")
		images.set(noImages{err})
		return
	}
	puller, err := newImages(ctx, s)
	if err != nil {
		m.PowerOff(err)
	}
	m.AddPhase("initdata", time.Since(begin))
	images.set(puller)
}
