package sandbox

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/guestpull/container/mount"
)

// memory is a file system of the pod's own, a volume in the guest's memory. Containers may mount on its root, too, so it is reached by
// its handle and not by its path.
type memory struct {
	root *os.File
	// sharers are the containers whose mounts in it reach the others.
	sharers int
}

// ephemeralDir is where volumes are that containers can share mounts in. Nothing of the guest's own is there.
func (s *Sandbox) ephemeralDir() string { return filepath.Join(s.dir(), "ephemeral") }

// shareable tells whether mounts that a container makes in the volume at point may reach other containers.
func (s *Sandbox) shareable(point string) bool { return filepath.Dir(point) == s.ephemeralDir() }

// checkOverlap refuses a file system over or in another one: it would show up in the containers that have that already.
func (s *Sandbox) checkOverlap(point string) error {
	for other := range s.memories {
		if mount.Below(other, point) || mount.Below(point, other) {
			return fmt.Errorf("storage at %.200q overlaps the one at %s: %w", point, other, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// addMemory keeps the file system that was just mounted at point and passes on what containers will mount in it.
func (s *Sandbox) addMemory(root, point string, v volume) error {
	s.undo = append(s.undo, func(context.Context) error { return mount.Unmount(point) })
	handle, err := mount.Open(root, point)
	if err != nil {
		return err
	}
	s.memories[point] = &memory{root: handle}
	s.undo = append(s.undo, func(context.Context) error {
		delete(s.memories, point)
		return handle.Close()
	})
	if v.group >= 0 {
		if err := mount.ChownIn(handle, ".", v.group, fileMode(v.mode|0o2770)); err != nil {
			return err
		}
	}
	if s.shareable(point) {
		return mount.Propagate(handle, mount.Shared, false)
	}
	return nil
}

// memoryOf finds the file system that the path lies in, and where in it.
func (s *Sandbox) memoryOf(path string) (found *memory, point, rel string) {
	for point, m := range s.memories {
		if path == point {
			return m, point, "."
		}
		if mount.Below(point, path) {
			return m, point, strings.TrimPrefix(path, point+"/")
		}
	}
	return nil, "", ""
}

// OpenVolume opens a storage of the pod, or a part of it, below the sandbox's own folder. With share, mounts that a container makes in
// it will reach all others that have it, until release is called for the last such container; then those mounts are gone everywhere.
// InvalidArgument: no such storage, or mounts in it cannot be shared. FailedPrecondition: a container has mounted something there.
func (s *Sandbox) OpenVolume(path string, share bool) (handle *os.File, release func(context.Context) error, _ error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, point, rel := s.memoryOf(path)
	if share && (m == nil || !s.shareable(point)) {
		return nil, nil, fmt.Errorf("mounts in %.200q cannot be shared: it is no volume in memory: %w", path, errdefs.ErrInvalidArgument)
	}
	var err error
	switch {
	case m != nil:
		handle, err = mount.OpenIn(m.root, rel)
	case s.isStorage(path):
		handle, err = s.openFolder(path)
	default:
		err = fmt.Errorf("%.200q is in no storage of the pod: %w", path, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return nil, nil, err
	}
	if !share {
		return handle, func(context.Context) error { return nil }, nil
	}
	m.sharers++
	released := false
	return handle, func(context.Context) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if released || s.memories[point] != m {
			return nil
		}
		if m.sharers == 1 {
			// Which container made a mount is not known; the last one that could have done it is gone.
			if err := mount.UnmountBelow(m.root, s.scratch()); err != nil {
				return fmt.Errorf("unmount what containers have mounted in volume %s: %w", filepath.Base(point), err)
			}
		}
		m.sharers--
		released = true
		return nil
	}, nil
}

// scratch is a path that no request can name.
func (s *Sandbox) scratch() string { return filepath.Join(s.Base, ".unmount") }

// isStorage tells whether the path is a plain folder that was asked for, or in one.
func (s *Sandbox) isStorage(path string) bool {
	for point := range s.storages {
		if path == point || mount.Below(point, path) {
			return true
		}
	}
	return false
}

// openFolder opens a plain folder, which is on the same file system as the sandbox's own folder.
func (s *Sandbox) openFolder(path string) (*os.File, error) {
	dir, err := os.Open(s.dir())
	if err != nil {
		return nil, fmt.Errorf("open folder of the sandbox: %w", err)
	}
	defer dir.Close()
	return mount.OpenIn(dir, strings.TrimPrefix(path, s.dir()+"/"))
}
