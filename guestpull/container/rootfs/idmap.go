package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// Owner says whose a root file system is. The zero value means the guest's root.
type Owner struct {
	// Namespace is the path of the user namespace in which the image's users and groups are meant.
	Namespace string
	// UID and GID are what the namespace's root is in the guest.
	UID, GID uint32
}

// idmap mounts each layer again below scratch, with its owners moved into the user namespace, and returns the mounts and
// what removes them. The overlay keeps mounts of its own, so that may happen as soon as it is made.
func idmap(layers []string, scratch, namespace string) (_ []string, _ func() error, retErr error) {
	var mounted []string
	release := func() error {
		var faults []error
		for _, target := range mounted {
			faults = append(faults, unix.Unmount(target, unix.MNT_DETACH))
		}
		return errors.Join(faults...)
	}
	defer func() {
		if retErr != nil {
			retErr = errors.Join(retErr, release())
		}
	}()
	users, err := os.Open(namespace)
	if err != nil {
		return nil, nil, fmt.Errorf("open user namespace: %w", err)
	}
	defer users.Close()
	for i, layer := range layers {
		target := filepath.Join(scratch, "mapped", strconv.Itoa(i))
		if err := os.MkdirAll(target, 0o711); err != nil {
			return nil, nil, fmt.Errorf("make folder for layer %d: %w", i+1, err)
		}
		if err := mountMapped(layer, target, users); err != nil {
			return nil, nil, fmt.Errorf("map the owners of layer %d of %d: %w", i+1, len(layers), err)
		}
		mounted = append(mounted, target)
	}
	return mounted, release, nil
}

func mountMapped(source, target string, users *os.File) error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(users.Fd())}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return err
	}
	return unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
}
