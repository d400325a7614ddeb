package unpack

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/containerd/continuity/fs"
	"golang.org/x/sys/unix"
)

const (
	// openDirs is how many directories are kept open; files of a layer come folder by folder.
	openDirs = 64
	// openTries bounds how often a look-up is repeated that met a change of names elsewhere on the machine.
	openTries = 64

	dirFlags = unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC
)

// tree is the directory of a layer. All names are looked up inside of it, as if it were the root directory: links that the
// layer brings cannot lead out, whatever they point to. Nobody else writes to it.
type tree struct {
	place
	root int
	path string
	dirs map[string]int // open directories by their cleaned names
	// stale is true once a name went away: the same paths may lead elsewhere from then on.
	stale bool
}

func openTree(dir string, p place) (*tree, error) {
	fd, err := unix.Open(dir, dirFlags|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("open layer directory: %w", err)
	}
	// The kernel's own name for it, which is what it will say of directories inside.
	name, err := p.name(fd)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open layer directory: %w", err), unix.Close(fd))
	}
	return &tree{place: p, root: fd, path: name, dirs: map[string]int{}}, nil
}

func (t *tree) close() {
	t.forget()
	_ = unix.Close(t.root) // opened for its name only
}

// forget closes all directories but the root.
func (t *tree) forget() {
	for name, fd := range t.dirs {
		_ = unix.Close(fd) // opened for its name only
		delete(t.dirs, name)
	}
}

// dir opens a directory by its cleaned name; with create, missing ones on the way are made. The descriptor is good until
// the next call.
func (t *tree) dir(name string, create bool) (int, error) {
	if t.stale {
		t.forget()
		t.stale = false
	}
	if name == "." {
		return t.root, nil
	}
	if fd, ok := t.dirs[name]; ok {
		return fd, nil
	}
	fd, err := t.resolve(name)
	if errors.Is(err, unix.ENOENT) && create {
		fd, err = t.makeAll(name)
	}
	if err != nil {
		return -1, fmt.Errorf("open directory of entry: %w", err)
	}
	if len(t.dirs) >= openDirs {
		t.forget()
	}
	t.dirs[name] = fd
	return fd, nil
}

// resolve leaves it to the kernel to follow links and to stay inside.
func (t *tree) resolve(name string) (fd int, err error) {
	how := &unix.OpenHow{Flags: dirFlags, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV}
	for range openTries {
		if fd, err = unix.Openat2(t.root, name, how); !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			break
		}
	}
	return fd, err
}

// makeAll makes a directory and its parents. Links may lead to places that are missing, too; those are made there.
func (t *tree) makeAll(name string) (int, error) {
	resolved, err := fs.RootPath(t.path, name)
	if err != nil {
		return -1, err
	}
	fd, err := unix.Dup(t.root)
	if err != nil {
		return -1, err
	}
	rest := strings.Trim(strings.TrimPrefix(resolved, t.path), "/")
	for part := range strings.SplitSeq(rest, "/") {
		if part == "" {
			continue
		}
		// No links are left in what was resolved; should that be wrong, opening fails.
		next, err := step(fd, part)
		_ = unix.Close(fd) // opened for its name only
		if err != nil {
			return -1, err
		}
		fd = next
	}
	return fd, nil
}

// step opens a directory in a directory, made where it is missing.
func step(dir int, name string) (int, error) {
	err := unix.Mkdirat(dir, name, 0o755)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, err
	}
	if err == nil {
		// Whatever the umask is.
		if err := unix.Fchmodat(dir, name, 0o755, 0); err != nil {
			return -1, err
		}
	}
	return unix.Openat(dir, name, dirFlags|unix.O_NOFOLLOW, 0)
}

// replace makes a name in a directory, and removes what has the name already.
func (t *tree) replace(dir int, name string, create func() error) error {
	err := create()
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	t.stale = true
	if err := removeAll(dir, name); err != nil {
		return fmt.Errorf("remove what had the name before: %w", err)
	}
	return create()
}

// removeAll removes a name with all that is below, and follows no link.
func removeAll(dir int, name string) error {
	err := unix.Unlinkat(dir, name, 0)
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) {
		return ignoreMissing(err)
	}
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), path.Base(name))
	defer f.Close()
	for {
		names, err := f.Readdirnames(256)
		for _, below := range names {
			if err := removeAll(fd, below); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	return unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
}
