package unpack

import (
	"archive/tar"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	whiteoutPrefix = ".wh."
	opaqueMarker   = ".wh..wh..opq"
	opaqueXattr    = "trusted.overlay.opaque"
)

// whiteouts turns the markers of OCI layers into those of overlay. A marker speaks of the layers below only, wherever in
// the stream it stands: a layer may hide a name and bring it anew.
type whiteouts struct {
	hidden []string
}

// convert looks at the entry of a name in an open directory, and returns whether it is to be written as it is.
func (w *whiteouts) convert(hdr *tar.Header, p place, dir int, base string) (bool, error) {
	if base == opaqueMarker {
		return false, opaque(p, dir)
	}
	name, marker := strings.CutPrefix(base, whiteoutPrefix)
	if !marker {
		return true, nil
	}
	if name == "" || name == "." || name == ".." {
		return false, fmt.Errorf("whiteout hides no name: %w", errdefs.ErrInvalidArgument)
	}
	// The name by which settle finds it again is the kernel's: links on the way to it are resolved.
	place, err := p.name(dir)
	if err != nil {
		return false, fmt.Errorf("make whiteout: %w", err)
	}
	w.hidden = append(w.hidden, filepath.Join(place, name))
	err = unix.Mknodat(dir, name, unix.S_IFCHR, 0)
	if errors.Is(err, unix.EEXIST) {
		// What this layer brings hides the name already, see settle for directories.
		return false, nil
	}
	if err == nil {
		err = unix.Fchownat(dir, name, hdr.Uid, hdr.Gid, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err != nil {
		return false, fmt.Errorf("make whiteout: %w", err)
	}
	return false, nil
}

// settle makes directories opaque that took the place of a hidden name; otherwise overlay would merge them with what was
// to be hidden. It walks inside root only: since convert saw a path, the layer may have put a link on the way.
func (w *whiteouts) settle(root string) error {
	if len(w.hidden) == 0 {
		return nil
	}
	r, err := os.OpenRoot(root)
	if err != nil {
		return fmt.Errorf("settle whiteouts: %w", err)
	}
	defer r.Close()
	for _, path := range w.hidden {
		name, err := filepath.Rel(root, path)
		if err != nil {
			return fmt.Errorf("settle whiteouts: %w", err)
		}
		if info, err := r.Lstat(name); err != nil || !info.IsDir() {
			continue
		}
		if err := opaqueIn(r, name); err != nil {
			return err
		}
	}
	return nil
}

func opaqueIn(r *os.Root, name string) error {
	f, err := r.Open(name)
	if err != nil {
		return fmt.Errorf("mark directory opaque: %w", err)
	}
	defer f.Close()
	if err := unix.Fsetxattr(int(f.Fd()), opaqueXattr, []byte{'y'}, 0); err != nil {
		return fmt.Errorf("mark directory opaque: %w", err)
	}
	return nil
}

func opaque(p place, dir int) error {
	if err := p.setXattr(dir, ".", opaqueXattr, []byte{'y'}); err != nil {
		return fmt.Errorf("mark directory opaque (the store must support trusted extended attributes): %w", err)
	}
	return nil
}
