package unpack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// copy makes a file in a directory of the layer that is like one of a layer below.
func (l *linker) copy(ctx context.Context, n *node, dir int, base string) error {
	var err error
	switch kind := n.stat.Mode & unix.S_IFMT; kind {
	case unix.S_IFREG:
		return l.copyFile(ctx, n, dir, base)
	case unix.S_IFLNK:
		var target string
		if target, err = l.below.readlink(n); err == nil {
			err = unix.Symlinkat(target, dir, base)
		}
	case unix.S_IFIFO:
		err = unix.Mknodat(dir, base, kind, 0)
	case unix.S_IFCHR, unix.S_IFBLK:
		if !l.devices {
			return fmt.Errorf("copy target of hard link: device node: %w", errdefs.ErrInvalidArgument)
		}
		err = unix.Mknodat(dir, base, kind, int(n.stat.Rdev))
	default:
		err = unix.EINVAL
	}
	if err != nil {
		return fmt.Errorf("copy target of hard link: %w", err)
	}
	return l.describe(n, dir, base)
}

// copyFile copies a regular file with its holes.
func (l *linker) copyFile(ctx context.Context, n *node, dir int, base string) (retErr error) {
	if err := l.quota.grow(n.stat.Size, n.stat.Blocks*512); err != nil {
		return err
	}
	from, err := l.below.open(n.layers[0], n.name, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return fmt.Errorf("copy target of hard link: %w", err)
	}
	src := os.NewFile(uintptr(from), "target of hard link")
	defer src.Close()
	to, err := unix.Openat(dir, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("copy target of hard link: %w", err)
	}
	defer func() {
		if err := unix.Close(to); err != nil && retErr == nil {
			retErr = fmt.Errorf("copy target of hard link: %w", err)
		}
	}()
	if err := l.copyData(ctx, src, to, n.stat.Size); err != nil {
		return fmt.Errorf("copy target of hard link: %w", err)
	}
	return l.describe(n, dir, base)
}

// copyData copies what lies between holes.
func (l *linker) copyData(ctx context.Context, src *os.File, to int, size int64) error {
	for at := int64(0); at < size; {
		start, err := unix.Seek(int(src.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err != nil {
			return err
		}
		end, err := unix.Seek(int(src.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if err := l.writer.content(ctx, to, start, end-start, io.NewSectionReader(src, start, end-start)); err != nil {
			return err
		}
		at = end
	}
	return unix.Ftruncate(to, size)
}

// describe gives a copy the attributes of the original.
func (l *linker) describe(n *node, dir int, base string) error {
	if err := unix.Fchownat(dir, base, int(n.stat.Uid), int(n.stat.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set owner: %w", err)
	}
	err := l.below.copyXattrs(n, func(key string, value []byte) error {
		return l.writer.tree.setXattr(dir, base, key, value)
	})
	if err != nil {
		return err
	}
	if n.stat.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Fchmodat(dir, base, n.stat.Mode&allModeBits, 0); err != nil {
			return fmt.Errorf("set mode: %w", err)
		}
	}
	return setStatTimes(dir, base, &n.stat, unix.AT_SYMLINK_NOFOLLOW)
}
