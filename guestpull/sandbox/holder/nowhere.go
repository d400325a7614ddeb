package holder

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// nowhere is the root of an empty read-only file system that is mounted at no place, so that no path leads out of it: a folder's parent
// would, for whoever reaches it through /proc. All holders share it, for the life of the agent.
var nowhere = sync.OnceValues(func() (*os.File, error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open an empty file system: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("make an empty file system: %w", err)
	}
	root, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC,
		unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, fmt.Errorf("mount an empty file system: %w", err)
	}
	return os.NewFile(uintptr(root), "nowhere"), nil
})
