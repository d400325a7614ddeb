package hostfiles

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
)

// Limits bound what is copied of one mount into a guest, where it takes memory. The zero value of a field means its
// default.
type Limits struct {
	// Bytes bounds all files of the mount together; Entries its files, folders and links.
	Bytes   int64
	Entries int
	// Depth bounds how deep folders lie in each other.
	Depth int
}

// Defaults of Limits.
const (
	DefaultBytes   = 64 << 20
	DefaultEntries = 4096
	defaultDepth   = 32
)

// measured is how many times more entries than allowed are looked at, so that the error can name the volume's size.
const measured = 8

func (l Limits) withDefaults() Limits {
	if l.Bytes <= 0 {
		l.Bytes = DefaultBytes
	}
	if l.Entries <= 0 {
		l.Entries = DefaultEntries
	}
	if l.Depth <= 0 {
		l.Depth = defaultDepth
	}
	return l
}

func (l Limits) checkFile(path string, size int64) error {
	if size > l.Bytes {
		return l.tooLarge(path, amount(size))
	}
	return nil
}

// tooLarge says how large the volume is, what the limit is and what can be done.
func (l Limits) tooLarge(path, what string) error {
	return fmt.Errorf("%s of the host has %s, more than the %s in %d files that one mount may copy into a guest; use an emptyDir, "+
		"put the data into the image, mount a smaller part of it, or have the node's administrator raise volumes.max_copy_mib and "+
		"volumes.max_copy_files: %w", path, what, amount(l.Bytes), l.Entries, errdefs.ErrFailedPrecondition)
}

// measure says how much a folder holds, at least. It looks at a bounded part of it.
func (l Limits) measure(root *os.Root) string {
	var bytes int64
	var entries int
	more := ""
	_ = fs.WalkDir(root.FS(), ".", func(name string, entry fs.DirEntry, err error) error {
		if entries++; entries > l.Entries*measured {
			more = "more than "
			return fs.SkipAll
		}
		if err != nil || !entry.Type().IsRegular() {
			return nil // what cannot be read is not counted: the size is for people
		}
		if info, err := root.Lstat(filepath.FromSlash(name)); err == nil {
			bytes += info.Size()
		}
		return nil
	})
	return fmt.Sprintf("%s%s in %d files", more, amount(bytes), entries)
}

// amount writes a number of bytes for people.
func amount(bytes int64) string {
	if bytes >= 1<<20 {
		return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20))
	}
	return fmt.Sprintf("%d bytes", bytes)
}
