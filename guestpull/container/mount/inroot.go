package mount

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Owner is a user and a group as this kernel knows them.
type Owner struct{ UID, GID int }

// PinInRoot clones the mount of a path in an image, rel, onto target, as [Pin] does. Symbolic links are followed as a program sees them
// whose root is the image: none leads out of it. What is missing is made as folders of the owner missing; if that is nil, it is
// errdefs.ErrNotFound. An empty rel is the image's root.
func PinInRoot(root, rel, target string, missing *Owner) error {
	dir, err := os.OpenFile(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open image: %w", err)
	}
	defer dir.Close()
	src, err := openInRoot(dir, rel)
	if missing != nil && errdefs.IsNotFound(err) {
		src, err = makeInRoot(dir, rel, *missing)
	}
	if err != nil {
		return err
	}
	defer src.Close()
	return pin(src, target)
}

// openInRoot opens a handle of a path in an image.
func openInRoot(dir *os.File, rel string) (*os.File, error) {
	if rel == "" {
		rel = "."
	}
	fd, err := unix.Openat2(int(dir.Fd()), rel, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, fmt.Errorf("/%s is not in the image: %w", rel, errdefs.ErrNotFound)
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return nil, fmt.Errorf("/%s leads nowhere in the image: %w: %w", rel, err, errdefs.ErrInvalidArgument)
	case err != nil:
		return nil, fmt.Errorf("open /%s of the image: %w", rel, err)
	}
	return os.NewFile(uintptr(fd), rel), nil
}

// makeInRoot makes the missing folders of a path in an image, one below the other.
func makeInRoot(dir *os.File, rel string, owner Owner) (*os.File, error) {
	sofar := ""
	for name := range strings.SplitSeq(rel, "/") {
		parent, err := openInRoot(dir, sofar)
		if err != nil {
			return nil, err
		}
		sofar = path.Join(sofar, name)
		there, err := openInRoot(dir, sofar)
		switch {
		case err == nil:
			err = there.Close()
		case errdefs.IsNotFound(err):
			// A link that leads nowhere is in the way; it stays.
			err = unix.Mkdirat(int(parent.Fd()), name, 0o755)
			if err == nil {
				err = unix.Fchownat(int(parent.Fd()), name, owner.UID, owner.GID, unix.AT_SYMLINK_NOFOLLOW)
			}
			if err != nil {
				err = fmt.Errorf("make folder /%s in the image: %w", sofar, err)
			}
		}
		if err = errors.Join(err, parent.Close()); err != nil {
			return nil, err
		}
	}
	return openInRoot(dir, rel)
}
