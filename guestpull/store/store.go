// Package store keeps the unpacked layers of a guest: staging/ holds layers in work, layers/ those that were proven. A
// layer gets from the one to the other by a rename, so whatever is in layers/ is complete.
//
//	absent --Layer--> staging --fill ok, rename--> published --last owner released--> absent
//	                     |                           ^   |
//	                     +--fill failed--> absent    |   +--the same, with retention--> idle --space or time--> absent
//	                                                 +---------------Layer----------------+
//
// The caller chooses the id of a layer; it must cover everything that the right to read the layer rests on. Owners are
// containers; a layer lives as long as one of its owners. The package never looks into layers.
package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
)

// DefaultDir is where the guest's memory holds images, as in Kata.
const DefaultDir = "/run/kata-containers/image"

// Store is safe for concurrent use. One process may use a directory at a time.
type Store struct {
	staging, layers string

	mu      sync.Mutex
	flights map[digest.Digest]*flight
	owners  map[digest.Digest]map[string]bool // of published layers, also of those without any
	keep    time.Duration                     // 0: layers without owners go at once
	idle    []idle                            // the longest idle one first
}

// flight is a layer in work; others who want it wait for done.
type flight struct {
	done chan struct{}
}

// Open takes a directory for layers and makes it where it is missing. What an earlier process left there is removed: its
// owners are gone, and nobody knows any more whether its bytes were touched since they were proven.
func Open(dir string, opts ...Option) (*Store, error) {
	s := &Store{
		staging: filepath.Join(dir, "staging"),
		layers:  filepath.Join(dir, "layers"),
		flights: map[digest.Digest]*flight{},
		owners:  map[digest.Digest]map[string]bool{},
	}
	for _, opt := range opts {
		opt(s)
	}
	// Only the store itself is private: others keep what they share with containers' users beside it.
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return nil, fmt.Errorf("make image store: %w", err)
	}
	for _, d := range []string{s.staging, s.layers} {
		if err := os.RemoveAll(d); err != nil {
			return nil, fmt.Errorf("clear image store: %w", err)
		}
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("make image store: %w", err)
		}
	}
	return s, nil
}

// Layer returns the directory of a layer and makes owner one of its owners. Where the layer is missing, fill is called with
// an empty directory to unpack it to; when fill returns nil, the directory is published. Of several callers at a time one
// fills and the others wait; when it fails, the next one tries, with its own fill.
func (s *Store) Layer(ctx context.Context, owner string, id digest.Digest, fill func(ctx context.Context, dir string) error) (string, error) {
	if err := id.Validate(); err != nil {
		return "", fmt.Errorf("store layer: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	path := s.path(id)
	for {
		s.mu.Lock()
		if s.owners[id] != nil {
			s.owners[id][owner] = true
			s.wake(id)
			s.mu.Unlock()
			return path, nil
		}
		if f := s.flights[id]; f != nil {
			s.mu.Unlock()
			select {
			case <-ctx.Done():
				return "", ctx.Err()
			case <-f.done:
				continue
			}
		}
		f := &flight{done: make(chan struct{})}
		s.flights[id] = f
		s.mu.Unlock()

		err := s.fill(ctx, id, fill)

		s.mu.Lock()
		delete(s.flights, id)
		if err == nil {
			s.owners[id] = map[string]bool{owner: true}
		}
		close(f.done)
		s.mu.Unlock()
		if err != nil {
			return "", err
		}
		return path, nil
	}
}

func (s *Store) path(id digest.Digest) string {
	return filepath.Join(s.layers, id.Encoded())
}

// fill stages and publishes one layer; on failure nothing of it stays behind.
func (s *Store) fill(ctx context.Context, id digest.Digest, fill func(context.Context, string) error) (retErr error) {
	dir, err := os.MkdirTemp(s.staging, "layer-")
	if err != nil {
		return fmt.Errorf("stage layer: %w", err)
	}
	defer func() {
		if retErr != nil {
			if err := os.RemoveAll(dir); err != nil {
				retErr = errors.Join(retErr, fmt.Errorf("remove staged layer: %w", err))
			}
		}
	}()
	if err := fill(ctx, dir); err != nil {
		return err
	}
	if err := os.Rename(dir, s.path(id)); err != nil {
		return fmt.Errorf("publish layer %s: %w", id, err)
	}
	return nil
}

// Release ends the ownership of a container. Layers that nobody owns any more are removed, at once or later; see
// WithRetention. It is safe to repeat.
func (s *Store) Release(ctx context.Context, owner string) error {
	s.mu.Lock()
	var (
		errs []error
		dead []string
	)
	for id, owners := range s.owners {
		if !owners[owner] {
			continue
		}
		delete(owners, owner)
		if len(owners) > 0 {
			continue
		}
		if s.rest(id) {
			continue
		}
		grave, err := s.bury(id)
		if grave != "" {
			dead = append(dead, grave)
		}
		errs = append(errs, err)
	}
	s.mu.Unlock()
	for _, dir := range dead {
		if err := os.RemoveAll(dir); err != nil {
			errs = append(errs, fmt.Errorf("remove layer: %w", err))
		}
	}
	if len(dead) > 0 {
		log.G(ctx).WithFields(log.Fields{"container": owner, "layers": len(dead)}).Info("image layers removed")
	}
	// Room is made at once rather than when the next image needs it: containers need memory too.
	_, err := s.Room()
	return errors.Join(append(errs, err)...)
}
