package scratch

import (
	"context"
	"fmt"
)

// Place tells where the scratch disk is mounted, once that is known. It is safe for concurrent use.
type Place struct {
	known chan struct{}
	dir   string
	err   error
}

// NewPlace returns a Place that is not known yet.
func NewPlace() *Place { return &Place{known: make(chan struct{})} }

// Set makes the place known: a folder, or none (empty) for a guest without a scratch disk, or why there is none although one
// was promised. Call it once.
func (p *Place) Set(dir string, err error) {
	p.dir, p.err = dir, err
	close(p.known)
}

// Dir waits until the place is known. It is empty for a guest without a scratch disk.
func (p *Place) Dir(ctx context.Context) (string, error) {
	select {
	case <-p.known:
		return p.dir, p.err
	case <-ctx.Done():
		return "", fmt.Errorf("wait for the scratch disk: %w", ctx.Err())
	}
}
