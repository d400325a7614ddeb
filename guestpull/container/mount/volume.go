package mount

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Propagation says which mounts one sees that are made below another copy of the same mount, see mount_namespaces(7).
type Propagation uint64

// The kinds of propagation.
const (
	Private Propagation = unix.MS_PRIVATE // none
	Slave   Propagation = unix.MS_SLAVE   // those of the mount that it was made from
	Shared  Propagation = unix.MS_SHARED  // those of all others, which in turn see its own
)

// Open opens the folder path below root as a handle, following no symbolic link. What is mounted on the folder now is what the handle
// means, also when a container mounts something else over it.
func Open(root, path string) (*os.File, error) {
	return openBelow(root, path, unix.O_PATH|unix.O_DIRECTORY)
}

// OpenIn opens a handle of rel in an open folder to which containers pass their mounts on. It follows no link and enters nothing that
// is mounted there, whose server could be a container that never answers: that is errdefs.ErrFailedPrecondition. "." is the folder.
func OpenIn(dir *os.File, rel string) (*os.File, error) {
	return openWithin(dir, rel, dir.Name()+"/"+rel, unix.O_PATH)
}

// openWithin is openAt for a folder in which containers mount.
func openWithin(dir *os.File, rel, path string, flags uint64) (*os.File, error) {
	fd, err := unix.Openat2(int(dir.Fd()), rel, &unix.OpenHow{
		Flags: flags | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS |
			unix.RESOLVE_NO_XDEV,
	})
	switch {
	case errors.Is(err, unix.EXDEV):
		return nil, fmt.Errorf("%s lies in a file system that a container has mounted; mount the whole volume: %w", path, errdefs.ErrFailedPrecondition)
	case err != nil:
		return nil, openError(path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// MkdirIn is [MkdirBelow] for a folder in which containers mount, with the care of [OpenIn].
func MkdirIn(dir *os.File, rel string, parents, mode os.FileMode) (made bool, _ error) {
	return mkdir(dir, rel, parents, mode, openWithin)
}

// ChownIn gives a folder to a group and sets its mode, with the care of [OpenIn].
func ChownIn(dir *os.File, rel string, group int, mode os.FileMode) error {
	f, err := openWithin(dir, rel, dir.Name()+"/"+rel, unix.O_DIRECTORY|unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	return chown(f, group, mode)
}

// Propagate changes the propagation of an open mount, and with all also of what is mounted below it.
func Propagate(mnt *os.File, p Propagation, all bool) error {
	return setPropagation(int(mnt.Fd()), p, all)
}

func setPropagation(fd int, p Propagation, all bool) error {
	flags := uint(unix.AT_EMPTY_PATH)
	if all {
		flags |= unix.AT_RECURSIVE
	}
	if err := unix.MountSetattr(fd, "", flags, &unix.MountAttr{Propagation: uint64(p)}); err != nil {
		return fmt.Errorf("set propagation of a mount: %w", err)
	}
	return nil
}

// PinVolume clones the mount of an opened object onto target, as [Pin] does, with this propagation for it and all below it. remove
// unmounts the clone and nobody else's; it may be repeated.
func PinVolume(src *os.File, target string, p Propagation) (remove func() error, _ error) {
	tree, err := clone(src, target, p)
	if err != nil {
		return nil, err
	}
	var once sync.Once
	return func() (err error) {
		// Of a shared clone everybody would lose what is mounted below it. The handle tells it from what containers mount over it.
		once.Do(func() {
			err = errors.Join(setPropagation(tree, Private, true), unix.Close(tree))
		})
		return errors.Join(err, Unmount(target))
	}, nil
}

// UnmountBelow unmounts, for all who share the mount or receive from it, what is mounted below its root. scratch is a path that it
// makes, to which the host can have nothing mounted. No path in the volume is followed: its users may change them at any time.
func UnmountBelow(root *os.File, scratch string) error {
	// What a try before this one may have left.
	if err := Unmount(scratch); err != nil {
		return err
	}
	if err := os.Remove(scratch); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("clear the way for unmounting: %w", err)
	}
	tree, err := clone(root, scratch, Shared)
	if err != nil {
		return err
	}
	// The kernel takes the clone's mounts away from all the clone's peers, and the clone itself from nobody: it is mounted on what nobody shares.
	return errors.Join(unix.Close(tree), Unmount(scratch), os.Remove(scratch))
}
