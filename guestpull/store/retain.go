package store

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// scarcity is the part of all space (one in so many) that layers without owners leave free: the memory that they take
// belongs to the containers first.
const scarcity = 4

// idle is a layer that nobody owns.
type idle struct {
	id    digest.Digest
	since time.Time
}

// Option changes a Store.
type Option func(*Store)

// WithRetention keeps layers for a while after their last owner has gone, so that a container that is started again, or
// whose creation is tried again, does not pull again. They go, the one first that was longest without owner, as soon as
// others need the space, or less than a quarter of it is free.
func WithRetention(d time.Duration) Option {
	return func(s *Store) { s.keep = d }
}

// rest takes a layer that lost its last owner, or tells that it has to go. The lock is held.
func (s *Store) rest(id digest.Digest) bool {
	if s.keep <= 0 {
		return false
	}
	s.idle = append(s.idle, idle{id: id, since: time.Now()})
	time.AfterFunc(s.keep, func() { s.expire(time.Now()) })
	return true
}

// wake takes a layer that has an owner again. The lock is held.
func (s *Store) wake(id digest.Digest) {
	s.idle = slices.DeleteFunc(s.idle, func(i idle) bool { return i.id == id })
}

// expire removes the layers whose time without owner is over.
func (s *Store) expire(now time.Time) {
	s.evict(func(i idle) bool { return now.Sub(i.since) >= s.keep })
}

// reclaim removes layers without owners from a volume, other than those of spare, until so many bytes are free there.
func (s *Store) reclaim(v *volume, need int64, spare map[digest.Digest]int64) error {
	for {
		free, err := s.Free(v.layers)
		if err != nil || free >= need {
			return err
		}
		removed := false
		s.evict(func(i idle) bool {
			if _, wanted := spare[i.id]; wanted || removed || s.layers[i.id].volume != v {
				return false
			}
			removed = true
			return true
		})
		if !removed {
			return nil
		}
	}
}

// Evict removes all layers without owners and reports whether there were any.
func (s *Store) Evict() bool {
	found := false
	s.evict(func(idle) bool {
		found = true
		return true
	})
	return found
}

// Room is Free after layers without owners have made way, if there is little left.
func (s *Store) Room(dir string) (int64, error) {
	v := s.volumeAt(dir)
	s.mu.Lock()
	none := len(s.idle) == 0
	s.mu.Unlock()
	if none {
		return s.Free(dir)
	}
	least, err := plenty(v)
	if err != nil {
		return 0, err
	}
	if err := s.reclaim(v, least, nil); err != nil {
		return 0, err
	}
	return s.Free(dir)
}

// plenty is how many bytes must be free for layers without owners to stay.
func plenty(v *volume) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(v.layers, &st); err != nil {
		return 0, fmt.Errorf("look at the space of the image store: %w", err)
	}
	total := int64(st.Blocks) * st.Bsize
	if st.Type == unix.TMPFS_MAGIC || st.Type == unix.RAMFS_MAGIC {
		_, all, err := memory()
		if err != nil {
			return 0, err
		}
		if total == 0 || all < total {
			total = all
		}
	}
	return total / scarcity, nil
}

// evict removes the layers without owners that match, oldest first. What cannot be removed is logged, and found again by no
// one.
func (s *Store) evict(match func(idle) bool) {
	var graves []string
	s.mu.Lock()
	s.idle = slices.DeleteFunc(s.idle, func(i idle) bool {
		if !match(i) {
			return false
		}
		grave, err := s.bury(i.id)
		if err != nil {
			log.L.WithError(err).Error("image layer without owner was not removed")
			return true
		}
		graves = append(graves, grave)
		return true
	})
	s.mu.Unlock()
	for _, grave := range graves {
		if err := os.RemoveAll(grave); err != nil {
			log.L.WithError(err).Error("image layer without owner was not removed")
		}
	}
	if len(graves) > 0 {
		log.L.WithField("layers", len(graves)).Info("image layers without owner removed")
	}
}

// bury moves a layer out of the way, so that its name is free for whoever pulls it next, and returns what is to be removed.
// The lock is held.
func (s *Store) bury(id digest.Digest) (string, error) {
	v := s.layers[id].volume
	delete(s.layers, id)
	grave, err := os.MkdirTemp(v.staging, "removed-")
	if err == nil {
		err = os.Rename(v.path(id), filepath.Join(grave, "layer"))
	}
	if err != nil {
		return grave, fmt.Errorf("remove layer %s: %w", id, err)
	}
	return grave, nil
}
