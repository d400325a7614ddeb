// Package mount makes the mounts of containers in the guest from paths that the host named.
//
// The host may plant symbolic links and exchange files below the shared folder at any moment. So a path is never looked at and
// then used again: it is opened once, without following any link, and the mount is made from that open object.
package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// openBelow opens path, which must lie strictly below root, as a handle, without following symbolic links in any part below root.
func openBelow(root, path string, flags uint64) (*os.File, error) {
	rel, err := relative(root, path)
	if err != nil {
		return nil, err
	}
	dir, err := os.OpenFile(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", root, err)
	}
	defer dir.Close()
	return openAt(dir, rel, path, flags)
}

// openAt opens rel below an open folder; path is its name in messages.
func openAt(dir *os.File, rel, path string, flags uint64) (*os.File, error) {
	fd, err := unix.Openat2(int(dir.Fd()), rel, &unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, openError(path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// openError says what is wrong with a path that could not be opened.
func openError(path string, err error) error {
	switch {
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("%s does not exist in the guest: %w", path, errdefs.ErrNotFound)
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.EXDEV):
		return fmt.Errorf("%s leads through a symbolic link: %w", path, errdefs.ErrInvalidArgument)
	}
	return fmt.Errorf("open %s: %w", path, err)
}

// relative returns path relative to root, refusing everything that is not a clean path strictly below it.
func relative(root, path string) (string, error) {
	rel, ok := strings.CutPrefix(path, root+"/")
	if !ok || rel == "" || filepath.Clean(path) != path || strings.ContainsRune(path, 0) {
		return "", fmt.Errorf("%q is not a path below %s: %w", path, root, errdefs.ErrInvalidArgument)
	}
	return rel, nil
}

// Below reports whether path is a clean path strictly below root.
func Below(root, path string) bool {
	_, err := relative(root, path)
	return err == nil
}

// Pin clones the mount of source, a path below root, onto target, which it creates to fit (file or folder). From then on target is
// that very object, whatever happens to the path. Sub-mounts come along. Undo it with [Unmount].
func Pin(root, source, target string) error {
	src, err := openBelow(root, source, unix.O_PATH)
	if err != nil {
		return err
	}
	defer src.Close()
	return pin(src, target)
}

// pin clones the mount of an opened object, which nobody shares, onto target.
func pin(src *os.File, target string) error {
	tree, err := clone(src, target, Private)
	if err != nil {
		return err
	}
	return unix.Close(tree)
}

// clone clones the mount of an opened object, and what is mounted below it, onto target, and returns a handle of the clone.
func clone(src *os.File, target string, p Propagation) (_ int, retErr error) {
	info, err := src.Stat()
	if err != nil {
		return -1, fmt.Errorf("look at %s: %w", src.Name(), err)
	}
	switch {
	case info.IsDir():
		err = os.Mkdir(target, 0o700)
	case info.Mode().IsRegular():
		err = touch(target)
	default:
		err = fmt.Errorf("%s is neither a file nor a folder: %w", src.Name(), errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return -1, err
	}
	defer func() {
		if retErr != nil {
			retErr = errors.Join(retErr, os.Remove(target))
		}
	}()
	tree, err := unix.OpenTree(int(src.Fd()), "",
		unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE)
	if err != nil {
		return -1, fmt.Errorf("clone mount of %s: %w", src.Name(), err)
	}
	err = setPropagation(tree, p, true)
	if err == nil {
		err = unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
	}
	if err != nil {
		return -1, errors.Join(fmt.Errorf("attach mount of %s: %w", src.Name(), err), unix.Close(tree))
	}
	return tree, nil
}

func touch(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// MkdirBelow makes the folder path below root, following no symbolic link in any part, and reports whether it was missing. What is there
// stays as it is, a file too. Missing parents are made with a mode of their own.
func MkdirBelow(root, path string, parents, mode os.FileMode) (made bool, _ error) {
	rel, err := relative(root, path)
	if err != nil {
		return false, err
	}
	dir, err := os.OpenFile(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, fmt.Errorf("open %s: %w", root, err)
	}
	defer dir.Close()
	return mkdir(dir, rel, parents, mode, openAt)
}

// mkdir makes a folder and its missing parents; open opens one of them in the one above it.
func mkdir(dir *os.File, rel string, parents, mode os.FileMode, open func(at *os.File, rel, path string, flags uint64) (*os.File, error),
) (made bool, _ error) {
	at := dir
	defer func() {
		if at != dir {
			at.Close()
		}
	}()
	parts := strings.Split(rel, "/")
	for i, part := range parts {
		err := unix.Mkdirat(int(at.Fd()), part, 0o700)
		if made = err == nil; !made && !errors.Is(err, unix.EEXIST) {
			return false, fmt.Errorf("make folder %s/%s: %w", dir.Name(), rel, err)
		}
		if !made && i == len(parts)-1 {
			return false, nil
		}
		next, err := open(at, part, at.Name()+"/"+part, unix.O_DIRECTORY|unix.O_RDONLY)
		if err != nil {
			return false, err
		}
		if at != dir {
			at.Close()
		}
		at = next
		if !made {
			continue
		}
		want := parents
		if i == len(parts)-1 {
			want = mode
		}
		if err := setMode(at, want); err != nil {
			return false, fmt.Errorf("set mode of %s: %w", at.Name(), err)
		}
	}
	return made, nil
}

// setMode sets the mode of a new folder, whatever the process's umask is, and lets it keep the group that a volume passes on.
func setMode(dir *os.File, mode os.FileMode) error {
	info, err := dir.Stat()
	if err != nil {
		return err
	}
	return dir.Chmod(mode | info.Mode()&os.ModeSetgid)
}

// Tmpfs mounts an empty tmpfs on path, a folder below root. flags are mount flags, data the file system's own options.
func Tmpfs(root, path string, flags uintptr, data string) error {
	f, err := openBelow(root, path, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer f.Close()
	target := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	if err := unix.Mount("tmpfs", target, "tmpfs", flags, data); err != nil {
		return fmt.Errorf("mount tmpfs on %s: %w", path, err)
	}
	return nil
}

// Folder mounts the folder source, which is the guest's own, on path, a folder below root. Programs and devices in it work as in
// any volume, whatever the file system around source allows.
func Folder(source, root, path string) error {
	f, err := openBelow(root, path, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer f.Close()
	tree, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return fmt.Errorf("clone mount of %s: %w", source, err)
	}
	defer unix.Close(tree)
	attr := unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV, Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return fmt.Errorf("open mount of %s to programs: %w", source, err)
	}
	if err := unix.MoveMount(tree, "", int(f.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount %s on %s: %w", source, path, err)
	}
	return nil
}

// Unmount detaches everything mounted on path; that nothing is mounted there is no error.
func Unmount(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		switch {
		case err == nil:
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
			return nil
		default:
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
}

// Chown gives a folder below root to a group and sets its mode.
func Chown(root, path string, group int, mode os.FileMode) error {
	f, err := openBelow(root, path, unix.O_DIRECTORY|unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	return chown(f, group, mode)
}

func chown(f *os.File, group int, mode os.FileMode) error {
	if err := errors.Join(f.Chown(-1, group), f.Chmod(mode)); err != nil {
		return fmt.Errorf("set group of %s: %w", f.Name(), err)
	}
	return nil
}
