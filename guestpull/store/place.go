package store

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// unpackFactor is how many times its packed size a layer is expected to take. How much it does take nobody knows before its
// last byte: what a gzip stream or an annotation says of it is whoever made the image's word.
const unpackFactor = 4

// Place chooses where the layers of an owner go: to memory if there is no disk, or if half of the guest's memory, less what is
// used, has room for four times their packed size; otherwise to the disk. sizes has, per layer, its packed size in bytes, which
// is the least that it takes; layers that are here already count nothing, and layers without owners make way. It fails with errdefs.ErrResourceExhausted when
// there is not even room for that.
func (s *Store) Place(owner string, sizes map[digest.Digest]int64) error {
	var need int64
	s.mu.Lock()
	for id, size := range sizes {
		if s.layers[id] == nil {
			need += size
		}
	}
	s.mu.Unlock()
	v := s.memory
	if s.disk != nil {
		memory, err := s.Free(v.layers)
		if err != nil {
			return err
		}
		if need <= memory/unpackFactor {
			return nil
		}
		v = s.disk
		s.mu.Lock()
		s.placed[owner] = v
		s.mu.Unlock()
	}
	if err := s.reclaim(v, unpackFactor*need, sizes); err != nil {
		return err
	}
	free, err := s.Free(v.layers)
	if err != nil {
		return err
	}
	return s.room(v, need, free)
}

// Move sends what an owner has not got yet to the disk, after memory was too small for it. It tells whether there is a
// disk that was not tried already.
func (s *Store) Move(owner string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.disk == nil || s.placed[owner] == s.disk {
		return false
	}
	s.placed[owner] = s.disk
	return true
}

// volumeOf is where an owner's layers go. The caller holds the lock.
func (s *Store) volumeOf(owner string) *volume {
	if v := s.placed[owner]; v != nil {
		return v
	}
	return s.memory
}

// volumeAt is the volume that a folder of the store is in.
func (s *Store) volumeAt(dir string) *volume {
	if s.disk != nil && strings.HasPrefix(dir, filepath.Dir(s.disk.layers)+"/") {
		return s.disk
	}
	return s.memory
}

func (s *Store) room(v *volume, need, free int64) error {
	if need <= free {
		return nil
	}
	what := "guest memory offers %d MiB for images"
	if v == s.disk {
		what = "the scratch disk offers %d MiB"
	}
	return fmt.Errorf("image needs at least %d MiB, "+what+": %w", (need+mib-1)/mib, free/mib, errdefs.ErrResourceExhausted)
}

// Cures for a store that is too small; they name what an administrator can turn.
const (
	memoryCure = "image does not fit into the guest's memory, give the pod more (its annotation io.katacontainers.config.hypervisor.default_memory, " +
		"or default_memory_mib of the runtime configuration), or a scratch disk (annotation io.katacontainers.config.hypervisor.scratch_mib, " +
		"or scratch.default_mib)"
	diskCure = "image does not fit onto the pod's scratch disk, give it a larger one (annotation io.katacontainers.config.hypervisor.scratch_mib, " +
		"or scratch.default_mib of the runtime configuration)"
)

// Explain adds the cure to an error of an owner's layers that means a full store.
func (s *Store) Explain(owner string, err error) error {
	if !errdefs.IsResourceExhausted(err) {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	cure := memoryCure
	if s.volumeOf(owner) == s.disk {
		cure = diskCure
	}
	return fmt.Errorf("%s: %w", cure, err)
}
