package jail

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// rights are those of Landlock over files; each version of it knows the ones up to a point.
var rights = map[int]uint64{
	2: unix.LANDLOCK_ACCESS_FS_REFER<<1 - 1,
	3: unix.LANDLOCK_ACCESS_FS_TRUNCATE<<1 - 1,
	5: unix.LANDLOCK_ACCESS_FS_IOCTL_DEV<<1 - 1,
}

// unused are the rights that unpacking does not need.
const unused = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_MAKE_SOCK | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV

// ruleset is struct landlock_ruleset_attr.
type ruleset struct{ fs, net, scoped uint64 }

// landlock allows files below the root directory, and nothing else of what Landlock knows.
func landlock() error {
	raw, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	version := int(raw)
	switch {
	case errors.Is(errno, unix.ENOSYS), errors.Is(errno, unix.EOPNOTSUPP), errno == 0 && version < 2:
		return ErrNoLandlock
	case errno != 0:
		return fmt.Errorf("ask for its version: %w", errno)
	}
	var set ruleset
	size := unsafe.Sizeof(set.fs)
	for v, fs := range rights {
		if version >= v {
			set.fs |= fs
		}
	}
	if version >= 4 {
		set.net, size = unix.LANDLOCK_ACCESS_NET_BIND_TCP|unix.LANDLOCK_ACCESS_NET_CONNECT_TCP, size+unsafe.Sizeof(set.net)
	}
	if version >= 6 {
		set.scoped, size = unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET|unix.LANDLOCK_SCOPE_SIGNAL, size+unsafe.Sizeof(set.scoped)
	}
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&set)), size, 0) //nolint:gosec // the size is that of the struct
	if errno != 0 {
		return fmt.Errorf("make rules: %w", errno)
	}
	defer unix.Close(int(fd))
	root, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the root directory: %w", err)
	}
	defer unix.Close(root)
	rule := unix.LandlockPathBeneathAttr{Allowed_access: set.fs &^ unused, Parent_fd: int32(root)}
	_, _, errno = unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, fd, unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&rule)), 0, 0, 0) //nolint:gosec // the kernel reads it at once
	if errno != 0 {
		return fmt.Errorf("add a rule: %w", errno)
	}
	return everywhere(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0, 0, 0)
}
