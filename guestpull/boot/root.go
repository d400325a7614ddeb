package boot

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// moveRoot gives the root file system a parent mount, without which pivot_root fails with EINVAL and no OCI runtime can
// start a container: the initramfs is the one mount that has no parent. A bind mount of it on top of itself has one. What is mounted
// in it comes along.
func moveRoot(world inherited) error {
	if !world.bareRoot() {
		return nil
	}
	const stand = "/.root"
	if err := os.Mkdir(stand, 0o755); err != nil && !os.IsExist(err) {
		return fmt.Errorf("make directory %s: %w", stand, err)
	}
	if err := unix.Mount("/", stand, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind / to %s: %w", stand, err)
	}
	if err := unix.Chdir(stand); err != nil {
		return fmt.Errorf("enter %s: %w", stand, err)
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move %s to /: %w", stand, err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("change root to the moved mount: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("enter the new root: %w", err)
	}
	return nil
}
