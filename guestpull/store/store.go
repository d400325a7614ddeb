// Package store keeps the unpacked layers of a guest: staging/ holds layers in work, layers/ those that were proven. A
// layer gets from the one to the other by a rename, so whatever is in layers/ is complete.
//
//	absent --Layer--> staging --fill ok, rename--> published --last owner released--> absent
//	                     |                           ^   |
//	                     +--fill failed--> absent    |   +--the same, with retention--> idle --space or time--> absent
//	                                                 +---------------Layer----------------+
//
// A store may have a disk beside the guest's memory, see Place.
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
	memory *volume
	disk   *volume // nil: there is none

	mu      sync.Mutex
	flights map[digest.Digest]*flight
	layers  map[digest.Digest]*layer
	placed  map[string]*volume // where an owner's layers go, if not to memory
	keep    time.Duration      // 0: layers without owners go at once
	idle    []idle             // the longest idle one first
}

// volume is one of the places for layers.
type volume struct{ staging, layers string }

func (v *volume) path(id digest.Digest) string { return filepath.Join(v.layers, id.Encoded()) }

// layer is a published one, perhaps without owners.
type layer struct {
	volume *volume
	owners map[string]bool
}

// WithDisk gives the store a folder on a disk, beside the one in memory.
func WithDisk(dir string) Option {
	return func(s *Store) { s.disk = newVolume(dir) }
}

func newVolume(dir string) *volume {
	return &volume{staging: filepath.Join(dir, "staging"), layers: filepath.Join(dir, "layers")}
}

// flight is a layer in work; others who want it wait for done.
type flight struct {
	done chan struct{}
}

// Open takes a directory for layers and makes it where it is missing. What an earlier process left there is removed: its
// owners are gone, and nobody knows any more whether its bytes were touched since they were proven.
func Open(dir string, opts ...Option) (*Store, error) {
	s := &Store{
		memory:  newVolume(dir),
		flights: map[digest.Digest]*flight{},
		layers:  map[digest.Digest]*layer{},
		placed:  map[string]*volume{},
	}
	for _, opt := range opts {
		opt(s)
	}
	for _, v := range []*volume{s.memory, s.disk} {
		if v == nil {
			continue
		}
		if err := v.clear(); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// clear makes the volume's folders, empty.
func (v *volume) clear() error {
	// Only the store itself is private: others keep what they share with containers' users beside it.
	if err := os.MkdirAll(filepath.Dir(filepath.Dir(v.layers)), 0o755); err != nil {
		return fmt.Errorf("make image store: %w", err)
	}
	for _, dir := range []string{v.staging, v.layers} {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("clear image store: %w", err)
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make image store: %w", err)
		}
	}
	return nil
}

// Layer returns the directory of a layer and makes owner one of its owners. Where the layer is missing, fill is called with
// an empty directory to unpack it to; when fill returns nil, the directory is published. Of several callers at a time one
// fills and the others wait; when it fails, the next one tries, with its own fill.
func (s *Store) Layer(ctx context.Context, owner string, id digest.Digest, fill func(ctx context.Context, dir string) error) (string, error) {
	if err := id.Validate(); err != nil {
		return "", fmt.Errorf("store layer: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	for {
		s.mu.Lock()
		if l := s.layers[id]; l != nil {
			l.owners[owner] = true
			s.wake(id)
			s.mu.Unlock()
			return l.volume.path(id), nil
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
		v := s.volumeOf(owner)
		s.mu.Unlock()

		err := v.fill(ctx, id, fill)

		s.mu.Lock()
		delete(s.flights, id)
		if err == nil {
			s.layers[id] = &layer{volume: v, owners: map[string]bool{owner: true}}
		}
		close(f.done)
		s.mu.Unlock()
		if err != nil {
			return "", err
		}
		return v.path(id), nil
	}
}

// fill stages and publishes one layer; on failure nothing of it stays behind.
func (v *volume) fill(ctx context.Context, id digest.Digest, fill func(context.Context, string) error) (retErr error) {
	dir, err := os.MkdirTemp(v.staging, "layer-")
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
	if err := os.Rename(dir, v.path(id)); err != nil {
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
	delete(s.placed, owner)
	for id, l := range s.layers {
		if !l.owners[owner] {
			continue
		}
		delete(l.owners, owner)
		if len(l.owners) > 0 {
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
	for _, v := range []*volume{s.memory, s.disk} {
		if v != nil {
			_, err := s.Room(v.layers)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
