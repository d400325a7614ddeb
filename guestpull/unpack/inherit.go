package unpack

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Inherit gives implied directories of a layer the owner, mode and times that they have in the layers below. Layers are
// unpacked side by side, so a directory without an entry of its own was made with defaults, and overlay shows the
// attributes of the topmost one. lower lists the layers below, lowest first.
func (u *Unpacker) Inherit(dir string, implied, lower []string) error {
	if len(implied) == 0 || len(lower) == 0 {
		return nil
	}
	top, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("inherit directory attributes: %w", err)
	}
	defer top.Close()
	var below []*os.Root
	defer func() {
		for _, root := range below {
			root.Close()
		}
	}()
	for _, dir := range slices.Backward(lower) {
		root, err := os.OpenRoot(dir)
		if err != nil {
			return fmt.Errorf("inherit directory attributes: %w", err)
		}
		below = append(below, root)
	}
	for _, name := range implied {
		if err := inherit(top, name, below); err != nil {
			return fmt.Errorf("inherit directory attributes: %w", err)
		}
	}
	return nil
}

// inherit copies from the nearest layer below that has the name. A layer where the name is no directory hides all others.
func inherit(top *os.Root, name string, below []*os.Root) error {
	if info, err := top.Lstat(name); err != nil || !info.IsDir() {
		// A later entry of the layer removed or replaced it.
		return ignoreMissing(err)
	}
	for _, root := range below {
		info, err := root.Lstat(name)
		switch {
		case err == nil && info.IsDir():
			return copyAttributes(top, name, info)
		case err == nil, errors.Is(err, unix.ENOTDIR):
			return nil
		case ignoreMissing(err) != nil:
			return err
		}
	}
	return nil
}

func copyAttributes(top *os.Root, name string, info fs.FileInfo) error {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return errors.New("file system gives no owner")
	}
	if err := top.Lchown(name, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := top.Chmod(name, info.Mode()); err != nil {
		return err
	}
	return top.Chtimes(name, info.ModTime(), info.ModTime())
}

// ignoreMissing treats a symbolic link on the way, which os.Root refuses to follow out of the layer, like a missing name.
func ignoreMissing(err error) error {
	if err == nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) ||
		strings.Contains(err.Error(), "path escapes") {
		return nil
	}
	return err
}
