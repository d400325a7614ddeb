package unpack

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Complete does what Apply had to leave undone in a layer, once the layers below are there: hard links to their files, and
// the attributes of directories that the layer does not name, since overlay shows those of the topmost one. lower lists
// the layers below, lowest first. size is the sum of the file sizes that came to the layer, in bytes.
//
// A link's target is brought into the layer, as overlay itself does it when a container makes a link: both names are then
// the same file.
func (u *Unpacker) Complete(ctx context.Context, dir string, deferred *Deferred, lower []string) (size int64, err error) {
	if deferred.Empty() {
		return 0, nil
	}
	size, err = u.complete(ctx, dir, deferred, lower)
	if err != nil {
		return 0, fmt.Errorf("complete layer: %w", classify(err))
	}
	return size, nil
}

func (u *Unpacker) complete(ctx context.Context, dir string, deferred *Deferred, lower []string) (int64, error) {
	w, err := u.newWriter(dir)
	if err != nil {
		return 0, err
	}
	defer w.tree.close()
	b, err := openBelow(lower)
	if err != nil {
		return 0, err
	}
	defer b.close()
	l := &linker{writer: w, below: b, quota: newQuota(u.limits, u.spaceIn(dir), nil), copies: map[copyKey]string{}, devices: u.devices}
	for i := range deferred.Links {
		if err := l.link(ctx, &deferred.Links[i]); err != nil {
			return 0, err
		}
	}
	// Last, since what is made in a directory changes its times.
	for _, name := range deferred.Implied {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		if err := inherit(w.tree, b, name); err != nil {
			return 0, fmt.Errorf("inherit directory attributes: %w", err)
		}
	}
	return l.quota.bytes, nil
}

// inherit gives a directory the attributes that its name has in the layers below, if it is a directory there.
func inherit(t *tree, b *below, name string) error {
	if len(b.roots) == 0 {
		return nil
	}
	fd, err := t.resolve(name)
	if err != nil {
		// A later entry of the layer removed or replaced it.
		return ignoreMissing(err)
	}
	defer unix.Close(fd)
	n, err := b.find(name)
	if err != nil || !n.isDir() {
		return ignoreMissing(err)
	}
	return b.copyAttributes(n, fd)
}

// copyAttributes gives an open directory owner, mode, extended attributes and times of another.
func (b *below) copyAttributes(n *node, dir int) error {
	if err := unix.Fchownat(dir, "", int(n.stat.Uid), int(n.stat.Gid), unix.AT_EMPTY_PATH); err != nil {
		return err
	}
	if err := b.copyXattrs(n, func(key string, value []byte) error { return unix.Setxattr(fdPath(dir), key, value, 0) }); err != nil {
		return err
	}
	if err := unix.Chmod(fdPath(dir), n.stat.Mode&allModeBits); err != nil {
		return err
	}
	return setStatTimes(dir, "", &n.stat, unix.AT_EMPTY_PATH)
}

// copyXattrs hands out the extended attributes of a node but those that steer overlay.
func (b *below) copyXattrs(n *node, set func(key string, value []byte) error) error {
	fd, err := b.open(n.layers[0], n.name, unix.O_PATH)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// A symbolic link can have some, too, and is not to be followed; hence by its folder and its name.
	from := fdPath(fd)
	if !n.isDir() {
		parent, err := b.open(n.layers[0], path.Dir(n.name), unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		defer unix.Close(parent)
		from = fdPath(parent) + "/" + path.Base(n.name)
	}
	keys, err := listXattrs(from, n.isDir())
	if err != nil {
		return err
	}
	for _, key := range keys {
		if strings.HasPrefix(key, "trusted.") {
			continue
		}
		value := make([]byte, maxXattrSize)
		size, err := getXattr(from, key, value, n.isDir())
		switch {
		case errors.Is(err, unix.ENODATA), errors.Is(err, unix.ENOTSUP):
			continue
		case err != nil:
			return fmt.Errorf("read extended attribute: %w", err)
		}
		if err := set(key, value[:size]); err != nil && !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("set extended attribute: %w", err)
		}
	}
	return nil
}

// maxXattrSize and maxXattrList are the kernel's XATTR_SIZE_MAX and XATTR_LIST_MAX in bytes.
const (
	maxXattrSize = 64 << 10
	maxXattrList = 64 << 10
)

// listXattrs follows a link for the kernel's name of an open directory only.
func listXattrs(name string, follow bool) ([]string, error) {
	list := unix.Llistxattr
	if follow {
		list = unix.Listxattr
	}
	buf := make([]byte, maxXattrList)
	n, err := list(name, buf)
	switch {
	case errors.Is(err, unix.ENOTSUP), n == 0 && err == nil:
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("list extended attributes: %w", err)
	}
	return strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00"), nil
}

func getXattr(name, key string, value []byte, follow bool) (int, error) {
	if follow {
		return unix.Getxattr(name, key, value)
	}
	return unix.Lgetxattr(name, key, value)
}

func setStatTimes(dir int, base string, st *unix.Stat_t, flags int) error {
	if err := unix.UtimesNanoAt(dir, base, []unix.Timespec{st.Atim, st.Mtim}, flags); err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	return nil
}

// ignoreMissing treats what is in the way of a name like a missing name.
func ignoreMissing(err error) error {
	if err == nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil
	}
	return err
}
