package unpack

import (
	"context"
	"errors"
	"fmt"
	"path"

	"golang.org/x/sys/unix"
)

// linker makes the hard links of a layer that lead to files of layers below.
type linker struct {
	writer  *writer
	below   *below
	quota   *quota
	devices bool
	// copies has, by what was copied, the name in the layer that the copy got first.
	copies map[copyKey]string
}

type copyKey struct {
	layer  int
	device uint64
	inode  uint64
}

// link makes one. Where a later entry of the layer has its name, that one stays.
func (l *linker) link(ctx context.Context, link *Link) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := checkName(link.Name); err != nil {
		return err
	}
	hdr := link.header()
	dir, err := l.place(path.Dir(link.Name))
	if err != nil {
		return ignoreMissing(err)
	}
	defer unix.Close(dir)
	base := path.Base(link.Name)
	if taken, err := occupied(dir, base); err != nil || taken {
		return err
	}
	// A link before this one may have brought what this one leads to.
	made, err := l.linkInside(dir, base, link.Target)
	if err == nil && !made {
		err = l.bring(ctx, dir, base, link)
	}
	if err != nil {
		return err
	}
	return l.writer.attributes(hdr, dir, base, true)
}

// place opens a directory of the layer by a name without symbolic links.
func (l *linker) place(name string) (int, error) {
	how := &unix.OpenHow{Flags: dirFlags | unix.O_NOFOLLOW, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV}
	fd, err := unix.Openat2(l.writer.tree.root, name, how)
	for tries := 1; tries < openTries && (errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR)); tries++ {
		fd, err = unix.Openat2(l.writer.tree.root, name, how)
	}
	return fd, err
}

// occupied reports whether a name is in use; a whiteout speaks of the layers below and makes room.
func occupied(dir int, base string) (bool, error) {
	var st unix.Stat_t
	err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, unix.ENOENT):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("make hard link: %w", err)
	case isWhiteout(&st):
		return false, keepTimes(dir, func() error { return unix.Unlinkat(dir, base, 0) })
	}
	return true, nil
}

// linkInside links to a file that an earlier link made in this layer.
func (l *linker) linkInside(dir int, base, target string) (bool, error) {
	from, err := l.writer.tree.resolve(path.Dir(target))
	if err != nil {
		return false, ignoreMissing(err)
	}
	defer unix.Close(from)
	var st unix.Stat_t
	if err := unix.Fstatat(from, path.Base(target), &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return false, ignoreMissing(err)
	}
	if !l.isCopy(&st) {
		// An entry after the link brought it, so the link means what was there before.
		return false, nil
	}
	return true, hardLink(from, path.Base(target), dir, base)
}

// isCopy reports whether a file of the layer was brought by a link.
func (l *linker) isCopy(st *unix.Stat_t) bool {
	_, ok := l.copies[copyKey{layer: ownLayer, device: st.Dev, inode: st.Ino}]
	return ok
}

// ownLayer stands for the layer itself beside indexes of those below.
const ownLayer = -1

// bring copies the target of a link to the link's name, and gives the copy the target's own name, too, where the layer
// neither has nor hides it.
func (l *linker) bring(ctx context.Context, dir int, base string, link *Link) error {
	found, err := l.below.find(link.Target)
	switch {
	case err == nil:
	case ignoreMissing(err) == nil:
		return errNoTarget
	default:
		return fmt.Errorf("make hard link: %w", err)
	}
	if found.isDir() {
		return fmt.Errorf("make hard link: target is a directory: %w", unix.EISDIR)
	}
	key := copyKey{layer: found.layers[0], device: found.stat.Dev, inode: found.stat.Ino}
	if first, ok := l.copies[key]; ok {
		made, err := l.again(first, dir, base)
		if err != nil {
			return err
		}
		if made {
			return l.shadow(found, dir, base)
		}
	}
	if err := keepTimes(dir, func() error { return l.copy(ctx, found, dir, base) }); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("make hard link: %w", err)
	}
	l.copies[key] = link.Name
	l.copies[copyKey{layer: ownLayer, device: st.Dev, inode: st.Ino}] = link.Name
	return l.shadow(found, dir, base)
}

// again links to a copy that was made before, unless it is gone.
func (l *linker) again(first string, dir int, base string) (bool, error) {
	from, err := l.place(path.Dir(first))
	if err != nil {
		return false, ignoreMissing(err)
	}
	defer unix.Close(from)
	if err := hardLink(from, path.Base(first), dir, base); err != nil {
		return false, ignoreMissing(err)
	}
	return true, nil
}

// shadow gives a copy the name of its original, so that both names lead to one file.
func (l *linker) shadow(found *node, dir int, base string) error {
	to, err := l.parents(path.Dir(found.name))
	if err != nil || to < 0 {
		return err
	}
	defer unix.Close(to)
	var st unix.Stat_t
	err = unix.Fstatat(to, path.Base(found.name), &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil {
		return nil
	}
	if !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("make hard link: %w", err)
	}
	return hardLink(dir, base, to, path.Base(found.name))
}

// parents opens the directory of a file below in the layer itself; what is missing is made with the attributes that it has
// below. It returns -1 where the layer hides the directory.
func (l *linker) parents(name string) (int, error) {
	at, err := unix.Dup(l.writer.tree.root)
	if err != nil {
		return -1, err
	}
	if isOpaque(at) {
		return -1, unix.Close(at)
	}
	sofar := "."
	for _, part := range split(name) {
		sofar = path.Join(sofar, part)
		next, err := l.parent(at, part, sofar)
		_ = unix.Close(at) // opened for its name only
		if err != nil || next < 0 {
			return -1, err
		}
		at = next
	}
	return at, nil
}

func (l *linker) parent(at int, part, name string) (int, error) {
	next, err := unix.Openat(at, part, dirFlags|unix.O_NOFOLLOW, 0)
	switch {
	case err == nil:
		if isOpaque(next) {
			return -1, unix.Close(next)
		}
		return next, nil
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return -1, nil
	case !errors.Is(err, unix.ENOENT):
		return -1, fmt.Errorf("make directory: %w", err)
	}
	n, err := l.below.child(path.Dir(name), part)
	if err != nil {
		return -1, fmt.Errorf("make directory: %w", err)
	}
	if err := keepTimes(at, func() error { return unix.Mkdirat(at, part, 0o700) }); err != nil {
		return -1, fmt.Errorf("make directory: %w", err)
	}
	if next, err = unix.Openat(at, part, dirFlags|unix.O_NOFOLLOW, 0); err != nil {
		return -1, fmt.Errorf("make directory: %w", err)
	}
	if err := l.below.copyAttributes(n, next); err != nil {
		_ = unix.Close(next) // opened for its name only
		return -1, fmt.Errorf("make directory: %w", err)
	}
	return next, nil
}

// hardLink links in a directory whose times stay.
func hardLink(from int, oldBase string, to int, newBase string) error {
	return keepTimes(to, func() error {
		if err := unix.Linkat(from, oldBase, to, newBase, 0); err != nil {
			return fmt.Errorf("make hard link: %w", err)
		}
		return nil
	})
}

// keepTimes gives a directory back the times that it had before it was changed.
func keepTimes(dir int, change func() error) error {
	var st unix.Stat_t
	if err := unix.Fstat(dir, &st); err != nil {
		return err
	}
	if err := change(); err != nil {
		return err
	}
	return setStatTimes(dir, "", &st, unix.AT_EMPTY_PATH)
}
