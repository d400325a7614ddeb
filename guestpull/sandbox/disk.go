package sandbox

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/coffer-project/coffer/guestpull/container/mount"
)

// makeOnDisk makes a plain folder that is a whole volume of the pod's on the scratch disk, if there is one: done tells
// whether it did. It then is a mount of its own, as a volume in memory is.
func (s *Sandbox) makeOnDisk(ctx context.Context, root, point string, v volume) (done bool, _ error) {
	if !s.shareable(point) || s.storages[point] != nil {
		return false, nil
	}
	disk, err := s.Scratch.Dir(ctx)
	if err != nil || disk == "" {
		return false, err
	}
	if err := s.checkOverlap(point); err != nil {
		return false, err
	}
	dir := filepath.Join(disk, "volumes", filepath.Base(point))
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return false, fmt.Errorf("make volume on the scratch disk: %w", err)
	}
	if err := os.Chmod(dir, fileMode(v.mode)); err != nil {
		return false, fmt.Errorf("make volume on the scratch disk: %w", err)
	}
	if _, err := mount.MkdirBelow(root, point, 0o755, 0o755); err != nil {
		return false, err
	}
	if err := mount.Folder(dir, root, point); err != nil {
		return false, err
	}
	s.undo = append(s.undo, func(context.Context) error { return os.RemoveAll(dir) })
	return true, s.addMemory(root, point, v)
}
