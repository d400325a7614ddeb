// Package rootfs makes a container's root file system from the layers of a verified image and answers what the image itself says
// about users and groups.
package rootfs

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/containerd/errdefs"
)

// maxLayers is the kernel's own limit of lower folders in one overlay.
const maxLayers = 500

// Overlay mounts layers, lowest first, under a fresh writable folder at target. Below scratch, which must be on a file system that
// supports extended attributes, it makes the folders that it needs. The layers are not changed. Undo it by unmounting target.
func Overlay(layers []string, scratch, target string, owner Owner) error {
	if len(layers) > maxLayers {
		return fmt.Errorf("image of %d layers: the kernel can stack %d: %w", len(layers), maxLayers, errdefs.ErrInvalidArgument)
	}
	dirs := map[string]string{"upperdir": scratch + "/upper", "workdir": scratch + "/work"}
	for _, dir := range []string{dirs["upperdir"], dirs["workdir"], target} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return fmt.Errorf("make folder for the root file system: %w", err)
		}
	}
	if len(layers) == 0 {
		// An overlay needs a lower folder, also for an image without content.
		empty := scratch + "/lower"
		if err := os.Mkdir(empty, 0o755); err != nil {
			return fmt.Errorf("make folder for the root file system: %w", err)
		}
		layers = []string{empty}
	}
	if owner.Namespace != "" {
		for _, dir := range dirs {
			if err := os.Chown(dir, int(owner.UID), int(owner.GID)); err != nil {
				return fmt.Errorf("give the root file system to its owner: %w", err)
			}
		}
	}
	return stack(layers, dirs, scratch, target, owner, 0)
}

// ReadOnly mounts layers, lowest first, at target with nothing writable over them. It makes target and scratch, and in that two
// empty folders, which it stacks below them: the kernel wants more than one. The layers are not changed. Undo it by unmounting target.
func ReadOnly(layers []string, scratch, target string, owner Owner) error {
	if len(layers) >= maxLayers-1 {
		return fmt.Errorf("image of %d layers: the kernel can stack %d: %w", len(layers), maxLayers, errdefs.ErrInvalidArgument)
	}
	under := []string{scratch + "/lower", scratch + "/lowest"}
	for _, dir := range append([]string{target, scratch}, under...) {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return fmt.Errorf("make folder for an image: %w", err)
		}
	}
	return stack(append(under, layers...), nil, scratch, target, owner, unix.MOUNT_ATTR_RDONLY)
}

// stack mounts an overlay of layers, lowest first, with the writable folders of dirs, if any.
func stack(layers []string, dirs map[string]string, scratch, target string, owner Owner, attributes int) (retErr error) {
	if owner.Namespace != "" {
		mapped, release, err := idmap(layers, scratch, owner.Namespace)
		if err != nil {
			return err
		}
		defer func() { retErr = errors.Join(retErr, release()) }()
		layers = mapped
	}
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open overlay file system: %w", err)
	}
	defer unix.Close(fs)
	if err := configure(fs, layers, dirs); err != nil {
		return err
	}
	mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attributes)
	if err != nil {
		return fmt.Errorf("mount overlay of %d layers: %w", len(layers), withLog(fs, err))
	}
	defer unix.Close(mnt)
	if err := unix.MoveMount(mnt, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach overlay: %w", err)
	}
	return nil
}

// configure hands the folders over one by one: as text in one mount option they would have to fit a page, colons escaped.
func configure(fs int, layers []string, dirs map[string]string) error {
	for i, layer := range slices.Backward(layers) { // the kernel wants the topmost first
		if err := unix.FsconfigSetString(fs, "lowerdir+", layer); err != nil {
			return fmt.Errorf("add layer %d of %d to overlay: %w", i+1, len(layers), withLog(fs, err))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(dirs)) {
		if err := unix.FsconfigSetString(fs, key, dirs[key]); err != nil {
			return fmt.Errorf("set %s of overlay: %w", key, withLog(fs, err))
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return fmt.Errorf("create overlay of %d layers: %w", len(layers), withLog(fs, err))
	}
	return nil
}

// withLog adds the kernel's own words, which it offers on the file system's descriptor.
func withLog(fs int, err error) error {
	buf := make([]byte, 1024)
	n, readErr := unix.Read(fs, buf)
	if readErr != nil || n <= 0 {
		return err
	}
	return errors.Join(err, fmt.Errorf("kernel: %q", buf[:n]))
}
