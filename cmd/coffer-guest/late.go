package main

import (
	"context"
	"fmt"

	"github.com/coffer-project/coffer/guestpull/container"
	"github.com/coffer-project/coffer/guestpull/image"
)

// lateImages is the puller before it is known how to pull.
type lateImages struct {
	known  chan struct{}
	images container.Images // valid once known is closed
}

func newLateImages() *lateImages { return &lateImages{known: make(chan struct{})} }

// set makes the puller known. Call it once.
func (l *lateImages) set(images container.Images) {
	l.images = images
	close(l.known)
}

// Pull waits until the puller is known.
func (l *lateImages) Pull(ctx context.Context, req image.Request) (*image.Image, error) {
	select {
	case <-l.known:
		return l.images.Pull(ctx, req)
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
