package unpack

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	permissions = 0o777
	allModeBits = 0o7777
)

// writer makes the entries of one layer in its tree, with as few calls to the kernel as their attributes allow.
type writer struct {
	tree      *tree
	calls     calls
	whiteouts whiteouts
	buf       []byte

	uid, gid int // of what this process makes
	umask    int64
	// inherits is true once the layer has a setgid directory: what is made in it does not get the process's group.
	inherits bool
	// times of directories are set last, as each file in them changes them.
	times []dirTime
	links []Link // that wait for the layers below
}

type dirTime struct {
	name         string
	atime, mtime time.Time
}

func (u *Unpacker) newWriter(dir string) (*writer, error) {
	t, err := openTree(dir, u.place)
	if err != nil {
		return nil, err
	}
	return &writer{tree: t, calls: u.calls, buf: make([]byte, bufferSize), uid: os.Geteuid(), gid: os.Getegid(), umask: u.mask}, nil
}

// umask is the process's; where it is unknown, modes are set once more for all files.
func umask() int64 {
	raw, _ := os.ReadFile("/proc/self/status")
	for line := range bytes.Lines(raw) {
		if value, ok := bytes.CutPrefix(line, []byte("Umask:")); ok {
			if mask, err := strconv.ParseInt(string(bytes.TrimSpace(value)), 8, 64); err == nil {
				return mask
			}
		}
	}
	return permissions
}

// write makes one entry; hdr.Name must be clean. body gives a file's content.
func (w *writer) write(ctx context.Context, hdr *tar.Header, body io.Reader) error {
	name := strings.TrimPrefix(path.Clean("/"+hdr.Name), "/")
	if name == "" || hdr.Typeflag == tar.TypeXGlobalHeader {
		// The root directory is the store's; global headers say nothing about files.
		return nil
	}
	base := path.Base(name)
	dir, err := w.tree.dir(path.Dir(name), true)
	if err != nil {
		return err
	}
	if written, err := w.whiteouts.convert(hdr, w.tree, dir, base); err != nil || !written {
		return err
	}
	switch hdr.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		return w.file(ctx, hdr, dir, base, body)
	case tar.TypeDir:
		return w.directory(hdr, dir, base, name)
	case tar.TypeLink:
		return w.link(hdr, path.Dir(name), base)
	case tar.TypeSymlink:
		err = w.tree.replace(dir, base, func() error { return unix.Symlinkat(hdr.Linkname, dir, base) })
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		err = w.special(hdr, dir, base)
	default:
		return fmt.Errorf("entry has the unknown type %q: %w", hdr.Typeflag, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return fmt.Errorf("make entry: %w", err)
	}
	return w.attributes(hdr, dir, base, false)
}

// file makes a regular file and writes its content.
func (w *writer) file(ctx context.Context, hdr *tar.Header, dir int, base string, body io.Reader) (retErr error) {
	fd := -1
	err := w.tree.replace(dir, base, func() (err error) {
		fd, err = w.calls.openat(dir, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, uint32(hdr.Mode&permissions))
		return err
	})
	if err != nil {
		return fmt.Errorf("make file: %w", err)
	}
	defer func() {
		if err := w.calls.close(fd); err != nil && retErr == nil {
			retErr = fmt.Errorf("close file: %w", err)
		}
	}()
	if err := reserve(fd, hdr); err != nil {
		return err
	}
	if err := w.content(ctx, fd, 0, hdr.Size, body); err != nil {
		return err
	}
	if w.foreign(hdr) {
		if err := unix.Fchown(fd, hdr.Uid, hdr.Gid); err != nil {
			return fmt.Errorf("set owner: %w", err)
		}
	}
	if err := setXattrs(hdr, func(key string, value []byte) error { return unix.Fsetxattr(fd, key, value, 0) }); err != nil {
		return err
	}
	// After the owner, whose change takes bits of the mode away.
	if w.wrongMode(hdr) {
		if err := unix.Fchmod(fd, uint32(hdr.Mode&allModeBits)); err != nil {
			return fmt.Errorf("set mode: %w", err)
		}
	}
	return w.calls.setTimes(fd, "", hdr.AccessTime, hdr.ModTime, unix.AT_EMPTY_PATH)
}

// directory makes a directory, or gives one that is there new attributes.
func (w *writer) directory(hdr *tar.Header, dir int, base, name string) error {
	there := false
	err := unix.Mkdirat(dir, base, uint32(hdr.Mode&permissions))
	if errors.Is(err, unix.EEXIST) {
		var st unix.Stat_t
		if err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
		there = st.Mode&unix.S_IFMT == unix.S_IFDIR
		err = nil
		if !there {
			err = w.tree.replace(dir, base, func() error { return unix.Mkdirat(dir, base, uint32(hdr.Mode&permissions)) })
		}
	}
	if err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	w.inherits = w.inherits || hdr.Mode&unix.S_ISGID != 0
	w.times = append(w.times, dirTime{name, hdr.AccessTime, hdr.ModTime})
	return w.attributes(hdr, dir, base, there)
}

// link makes a hard link. What it points to is looked up like all names, and its last part is not followed. The entry's
// attributes are given to what both names stand for. A target that is missing here may be in a layer below.
func (w *writer) link(hdr *tar.Header, parent, base string) error {
	target := strings.TrimPrefix(path.Clean("/"+hdr.Linkname), "/")
	if target == "" {
		return fmt.Errorf("make hard link: target is the root directory: %w", errdefs.ErrInvalidArgument)
	}
	from, err := w.target(path.Dir(target), path.Base(target))
	if err == nil {
		defer unix.Close(from)
	} else if !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("make hard link: %w", err)
	}
	dir, err := w.tree.dir(parent, true)
	if err != nil {
		return err
	}
	if from < 0 {
		return w.deferLink(hdr, dir, base, target)
	}
	if err := w.tree.replace(dir, base, func() error { return unix.Linkat(from, path.Base(target), dir, base, 0) }); err != nil {
		return fmt.Errorf("make hard link: %w", err)
	}
	return w.attributes(hdr, dir, base, true)
}

// target opens the directory of a link's target. It is -1 and ENOENT where this layer has none, or has only hidden the name.
func (w *writer) target(parent, base string) (int, error) {
	from, err := w.tree.dir(parent, false)
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(from, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return -1, err
	}
	switch {
	case isWhiteout(&st):
		return -1, unix.ENOENT
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return -1, unix.EISDIR
	}
	return unix.Dup(from)
}

// special makes a device node or a named pipe.
func (w *writer) special(hdr *tar.Header, dir int, base string) error {
	for _, number := range []int64{hdr.Devmajor, hdr.Devminor} {
		if number < 0 || number > math.MaxUint32 {
			return fmt.Errorf("device number %d:%d: %w", hdr.Devmajor, hdr.Devminor, errdefs.ErrInvalidArgument)
		}
	}
	kind := map[byte]uint32{tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO}[hdr.Typeflag]
	device := unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor))
	return w.tree.replace(dir, base, func() error {
		return unix.Mknodat(dir, base, kind|uint32(hdr.Mode&permissions), int(device))
	})
}

// foreign reports whether the owner of a new file has to be set.
func (w *writer) foreign(hdr *tar.Header) bool {
	return hdr.Uid != w.uid || hdr.Gid != w.gid || w.inherits
}

// wrongMode reports whether the mode of a new file or directory has to be set again.
func (w *writer) wrongMode(hdr *tar.Header) bool {
	return hdr.Mode&w.umask&permissions != 0 || hdr.Mode&allModeBits&^permissions != 0 || w.inherits
}

// attributes sets owner, extended attributes, mode and times of anything but a regular file. Of what was there before, all
// are set.
func (w *writer) attributes(hdr *tar.Header, dir int, base string, there bool) error {
	if there || w.foreign(hdr) {
		if err := unix.Fchownat(dir, base, hdr.Uid, hdr.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("set owner: %w", err)
		}
	}
	err := setXattrs(hdr, func(key string, value []byte) error {
		return w.tree.setXattr(dir, base, key, value)
	})
	if err != nil {
		return err
	}
	if hdr.Typeflag != tar.TypeSymlink && (there || w.wrongMode(hdr)) {
		if err := w.chmod(hdr, dir, base); err != nil {
			return err
		}
	}
	return w.calls.setTimes(dir, base, hdr.AccessTime, hdr.ModTime, unix.AT_SYMLINK_NOFOLLOW)
}

// chmod leaves links alone: a hard link may be one to a symbolic link, which the call would follow.
func (w *writer) chmod(hdr *tar.Header, dir int, base string) error {
	if hdr.Typeflag == tar.TypeLink {
		var st unix.Stat_t
		if err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("set mode: %w", err)
		}
		if st.Mode&unix.S_IFMT == unix.S_IFLNK {
			return nil
		}
	}
	if err := unix.Fchmodat(dir, base, uint32(hdr.Mode&allModeBits), 0); err != nil {
		return fmt.Errorf("set mode: %w", err)
	}
	return nil
}

// setXattrs sets the extended attributes of an entry. Those in trusted. steer the kernel and are not an image's to set;
// those that the file system or the kind of file cannot have are left out.
func setXattrs(hdr *tar.Header, set func(key string, value []byte) error) error {
	for record, value := range hdr.PAXRecords {
		key, ok := strings.CutPrefix(record, xattrPrefix)
		if !ok || strings.HasPrefix(key, "trusted.") {
			continue
		}
		err := set(key, []byte(value))
		switch plain := hdr.Typeflag == tar.TypeReg || hdr.Typeflag == tar.TypeDir; {
		case err == nil, errors.Is(err, unix.ENOTSUP):
		case errors.Is(err, unix.EPERM) && !plain && strings.HasPrefix(key, "user."):
		default:
			return fmt.Errorf("set extended attribute: %w", err)
		}
	}
	return nil
}

// settle does what can be done only when all entries are there.
func (w *writer) settle() error {
	if err := w.whiteouts.settle(w.tree.path); err != nil {
		return err
	}
	for _, d := range w.times {
		dir, err := w.tree.dir(path.Dir(d.name), false)
		if err != nil {
			// A later entry took its place, or that of a directory above.
			if err := ignoreMissing(err); err != nil {
				return err
			}
			continue
		}
		var st unix.Stat_t
		if err := unix.Fstatat(dir, path.Base(d.name), &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if err := ignoreMissing(err); err != nil {
				return fmt.Errorf("set times of directory: %w", err)
			}
			continue
		}
		if err := w.calls.setTimes(dir, path.Base(d.name), d.atime, d.mtime, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
	}
	return nil
}

// setTimes sets both times; a tar without the one of the last access has it equal to the other.
func (c calls) setTimes(dir int, base string, atime, mtime time.Time, flags int) error {
	if atime.Before(mtime) {
		atime = mtime
	}
	times := [2]unix.Timespec{timespec(atime), timespec(mtime)}
	if err := c.utimensat(dir, base, &times, flags); err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	return nil
}

// timespec is 1970 for times that file systems cannot hold.
func timespec(t time.Time) unix.Timespec {
	if t.Before(time.Unix(0, 0)) || t.After(time.Unix(0, math.MaxInt64)) {
		return unix.Timespec{}
	}
	return unix.NsecToTimespec(t.UnixNano())
}
