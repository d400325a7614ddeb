// Package cgroup reads and clears the control groups of containers: version 2, the only one in the guest.
package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Root is where the kernel's control groups are mounted.
type Root string

// Default is the mount point in the guest.
const Default Root = "/sys/fs/cgroup"

// Unified reports whether the root is version 2. Elsewhere (a development host) figures and events are missing.
func (r Root) Unified() bool {
	var st unix.Statfs_t
	return unix.Statfs(string(r), &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

// Dir returns the folder of the group at path, which begins with a slash.
func (r Root) Dir(path string) string { return filepath.Join(string(r), filepath.Clean("/"+path)) }

// Remove kills what is left in the group at path and removes it with all groups below. A group that is gone is no error.
func (r Root) Remove(ctx context.Context, path string) error {
	if !r.Unified() {
		return nil // runc has removed what it made in the older hierarchies
	}
	dir := r.Dir(path)
	err := os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("kill cgroup %s: %w", path, err)
	}
	if err := waitEmpty(ctx, dir); err != nil {
		return fmt.Errorf("empty cgroup %s: %w", path, err)
	}
	if err := removeTree(dir); err != nil {
		return fmt.Errorf("remove cgroup %s: %w", path, err)
	}
	return nil
}

// removeTree removes folders only, deepest first: the kernel's files in them go with them.
func removeTree(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err == nil && d.IsDir() {
			dirs = append(dirs, p)
		}
		return err
	})
	for _, dir := range slices.Backward(dirs) {
		if e := unix.Rmdir(dir); e != nil && !errors.Is(e, unix.ENOENT) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// reader reads the files of one group and keeps the first error that is not "this kernel does not have it".
type reader struct {
	dir string
	err error
}

// value reads a file with one number; "max" is the largest.
func (r *reader) value(name string) uint64 {
	text := strings.TrimSpace(r.text(name))
	if text == "max" {
		return 1<<64 - 1
	}
	v, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0
	}
	return v
}

// table reads a file of "key number" lines.
func (r *reader) table(name string) map[string]uint64 {
	out := make(map[string]uint64)
	for line := range strings.Lines(r.text(name)) {
		key, text, ok := strings.Cut(strings.TrimSpace(line), " ")
		if v, err := strconv.ParseUint(text, 10, 64); ok && err == nil {
			out[key] = v
		}
	}
	return out
}

func (r *reader) text(name string) string {
	data, err := os.ReadFile(filepath.Join(r.dir, name))
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) && r.err == nil {
			r.err = err
		}
		return ""
	}
	return string(data)
}

// check reports whether the group exists.
func (r Root) check(path string) error {
	if !r.Unified() {
		return fmt.Errorf("figures need cgroup version 2 at %s: %w", r, errdefs.ErrNotImplemented)
	}
	if _, err := os.Stat(r.Dir(path)); errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cgroup %s: %w", path, errdefs.ErrNotFound)
	} else if err != nil {
		return fmt.Errorf("look at cgroup %s: %w", path, err)
	}
	return nil
}
