package unpack

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	// maxFollowed is how many symbolic links are followed on the way to one name, as in the kernel.
	maxFollowed = 40
	// mergedNames is how many directories are remembered with the layers that they consist of.
	mergedNames = 1024
)

// below is the stack of layers under one, read as overlay shows it: whiteouts, opaque directories and files hide what is
// under them. Nothing is mounted for it, and no look-up leaves the layers.
type below struct {
	roots  []int // topmost first
	merged map[string][]int
}

// node is a name in the stack. layers are indexes of roots; of a file there is one, of a directory those that it
// consists of.
type node struct {
	name   string // no part of it is a symbolic link
	layers []int
	stat   unix.Stat_t
}

func (n *node) isDir() bool { return n.stat.Mode&unix.S_IFMT == unix.S_IFDIR }

// openBelow takes directories of layers, lowest first.
func openBelow(lower []string) (*below, error) {
	b := &below{merged: map[string][]int{}}
	for _, dir := range slices.Backward(lower) {
		fd, err := unix.Open(dir, dirFlags|unix.O_NOFOLLOW, 0)
		if err != nil {
			b.close()
			return nil, fmt.Errorf("open layer below: %w", err)
		}
		b.roots = append(b.roots, fd)
	}
	return b, nil
}

func (b *below) close() {
	for _, fd := range b.roots {
		_ = unix.Close(fd) // opened for its name only
	}
}

// open opens what one layer has under a name that has no symbolic link in it.
func (b *below) open(layer int, name string, flags uint64) (fd int, err error) {
	how := &unix.OpenHow{Flags: flags | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV}
	for range openTries {
		if fd, err = unix.Openat2(b.roots[layer], name, how); !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			break
		}
	}
	return fd, err
}

// dir returns the layers that a directory consists of, topmost first; none where the name is missing, hidden or a file.
func (b *below) dir(name string) ([]int, error) {
	if name == "." {
		all := make([]int, len(b.roots))
		for i := range all {
			all[i] = i
		}
		return all, nil
	}
	if layers, ok := b.merged[name]; ok {
		return layers, nil
	}
	n, err := b.child(path.Dir(name), path.Base(name))
	var layers []int
	if err == nil && n.isDir() {
		layers = n.layers
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, err
	}
	if len(b.merged) >= mergedNames {
		clear(b.merged)
	}
	b.merged[name] = layers
	return layers, nil
}

// child looks a name up in a directory. A missing one is ENOENT.
func (b *below) child(dir, base string) (*node, error) {
	parents, err := b.dir(dir)
	if err != nil {
		return nil, err
	}
	found := &node{name: path.Join(dir, base)}
	for _, layer := range parents {
		st, opaque, err := b.look(layer, found.name)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if len(found.layers) == 0 && !isWhiteout(&st) {
				found.layers, found.stat = []int{layer}, st
			}
			break
		}
		if len(found.layers) == 0 {
			found.stat = st
		}
		found.layers = append(found.layers, layer)
		if opaque {
			break
		}
	}
	if len(found.layers) == 0 {
		return nil, unix.ENOENT
	}
	return found, nil
}

// look returns what one layer has under a name, and whether it is a directory that hides those below it.
func (b *below) look(layer int, name string) (st unix.Stat_t, opaque bool, err error) {
	fd, err := b.open(layer, name, unix.O_PATH)
	if err != nil {
		return st, false, err
	}
	defer unix.Close(fd)
	if err := unix.Fstat(fd, &st); err != nil {
		return st, false, err
	}
	return st, st.Mode&unix.S_IFMT == unix.S_IFDIR && isOpaque(fd), nil
}

// isOpaque reports whether an open directory hides those of its name in the layers below.
func isOpaque(dir int) bool {
	var value [1]byte
	n, err := unix.Getxattr(fdPath(dir), opaqueXattr, value[:])
	return err == nil && n == 1 && value[0] == 'y'
}

func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

// find looks a name up as if the stack were the root directory. Symbolic links are followed on the way, and not at its end.
func (b *below) find(name string) (*node, error) {
	at, rest := ".", split(name)
	for followed := 0; ; {
		if len(rest) == 0 {
			return b.self(at)
		}
		part := rest[0]
		rest = rest[1:]
		if part == ".." {
			at = path.Dir(at)
			continue
		}
		n, err := b.child(at, part)
		if err != nil || len(rest) == 0 {
			return n, err
		}
		switch n.stat.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			at = n.name
		case unix.S_IFLNK:
			target, err := b.readlink(n)
			if err != nil {
				return nil, err
			}
			if followed++; followed > maxFollowed {
				return nil, unix.ELOOP
			}
			if strings.HasPrefix(target, "/") {
				at = "."
			}
			rest = append(split(target), rest...)
			if len(rest) > maxName {
				return nil, unix.ENAMETOOLONG
			}
		default:
			return nil, unix.ENOTDIR
		}
	}
}

// self is the node of a directory that was found already.
func (b *below) self(name string) (*node, error) {
	if name == "." {
		return nil, fmt.Errorf("name is the root directory: %w", errdefs.ErrInvalidArgument)
	}
	return b.child(path.Dir(name), path.Base(name))
}

func (b *below) readlink(n *node) (string, error) {
	fd, err := b.open(n.layers[0], n.name, unix.O_PATH)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	buf := make([]byte, maxName+1)
	size, err := unix.Readlinkat(fd, "", buf)
	if err != nil {
		return "", err
	}
	return string(buf[:size]), nil
}

// split cuts a path into its parts, without empty ones and those that mean the same place.
func split(name string) []string {
	return slices.DeleteFunc(strings.Split(name, "/"), func(part string) bool { return part == "" || part == "." })
}
