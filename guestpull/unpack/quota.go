package unpack

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

const (
	maxName      = 4095 // PATH_MAX without the terminator
	maxComponent = 255  // NAME_MAX
	// spaceStep is how much is read between two looks at the free space.
	spaceStep = 4 << 20
	// entryStep is how many entries are made between two looks at the free space.
	entryStep = 1024
	// nameCost is what a kept name takes beside its bytes.
	nameCost = 96
	// entryCost is what an entry takes in a tmpfs beside its bytes: inode, directory entry, kernel objects.
	entryCost = 1 << 10

	xattrPrefix = "SCHILY.xattr."
)

// quota counts a tar stream and its entries against limits.
type quota struct {
	limits Limits
	space  func() (int64, error)
	r      io.Reader

	stream    int64 // bytes read of the tar stream
	sinceLook int64
	entries   int
	looked    int   // entries at the last look at the free space
	bytes     int64 // sum of file sizes
	sparse    int64 // of those, of sparse files
	names     int64 // what is kept of names

	dirs   map[string]bool // directory -> has an entry of its own
	parent string          // directory of the last entry, which saves most look-ups
}

func newQuota(limits Limits, space func() (int64, error), r io.Reader) *quota {
	return &quota{limits: limits, space: space, r: r, dirs: map[string]bool{}}
}

// Read passes the tar stream on.
func (q *quota) Read(p []byte) (int, error) {
	n, err := q.r.Read(p)
	q.stream += int64(n)
	q.sinceLook += int64(n)
	if q.stream > q.limits.Bytes {
		return 0, fmt.Errorf("layer unpacks to more than %d bytes: %w", q.limits.Bytes, errdefs.ErrOutOfRange)
	}
	if q.sinceLook >= spaceStep {
		q.sinceLook = 0
		if err := q.room(0); err != nil {
			return 0, err
		}
	}
	return n, err
}

// room fails when n more bytes do not fit.
func (q *quota) room(n int64) error {
	if q.space == nil {
		return nil
	}
	free, err := q.space()
	if err != nil {
		return err
	}
	switch {
	case free > n:
		return nil
	case n == 0:
		return fmt.Errorf("layer does not fit: the space for images was used up after %d bytes of it: %w", q.stream, errdefs.ErrResourceExhausted)
	default:
		return fmt.Errorf("layer does not fit: %d more bytes are needed and %d may be used: %w", n, free, errdefs.ErrResourceExhausted)
	}
}

// entry checks the header of one entry.
func (q *quota) entry(hdr *tar.Header) error {
	if err := q.count(); err != nil {
		return err
	}
	if err := checkName(hdr.Name); err != nil {
		return fmt.Errorf("layer entry %d: name: %w", q.entries, err)
	}
	if len(hdr.Linkname) > maxName {
		return fmt.Errorf("layer entry %d: link target has %d bytes: %w", q.entries, len(hdr.Linkname), errdefs.ErrInvalidArgument)
	}
	// The size of a sparse file is the one after its holes were filled, which a stream of a few bytes can make as large as it
	// likes; what lies between them is counted as it is read.
	data := hdr.Size
	if isSparse(hdr) {
		data = 0
		if q.sparse += max(hdr.Size, 0); q.sparse > q.limits.Sparse || q.sparse < 0 {
			return fmt.Errorf("layer has sparse files of more than %d bytes: %w", q.limits.Sparse, errdefs.ErrOutOfRange)
		}
	}
	if err := q.grow(hdr.Size, data); err != nil {
		return err
	}
	xattrs := 0
	for key, value := range hdr.PAXRecords {
		if strings.HasPrefix(key, xattrPrefix) {
			xattrs += len(key) + len(value)
		}
	}
	if xattrs > q.limits.Xattrs {
		return fmt.Errorf("layer entry %d: extended attributes have %d bytes, the limit is %d: %w", q.entries, xattrs, q.limits.Xattrs, errdefs.ErrOutOfRange)
	}
	if depth := strings.Count(hdr.Name, "/"); depth >= q.limits.Depth {
		return fmt.Errorf("layer entry %d: name has %d components, the limit is %d: %w", q.entries, depth+1, q.limits.Depth, errdefs.ErrInvalidArgument)
	}
	kept := 0
	switch hdr.Typeflag {
	case tar.TypeDir:
		kept = len(hdr.Name)
	case tar.TypeLink:
		kept = len(hdr.Name) + len(hdr.Linkname) + xattrs
	default:
		if strings.HasPrefix(path.Base(hdr.Name), whiteoutPrefix) {
			kept = len(hdr.Name)
		}
	}
	if kept > 0 {
		if err := q.keep(kept); err != nil {
			return err
		}
	}
	return q.note(hdr)
}

// count counts an entry.
func (q *quota) count() error {
	q.entries++
	if q.entries > q.limits.Entries {
		return fmt.Errorf("layer has more than %d entries: %w", q.limits.Entries, errdefs.ErrOutOfRange)
	}
	return nil
}

// keep counts names that stay in memory.
func (q *quota) keep(n int) error {
	q.names += int64(n) + nameCost
	if q.names > q.limits.Names {
		return fmt.Errorf("layer has so many directories, whiteouts and links that their names take more than %d bytes: %w", q.limits.Names, errdefs.ErrOutOfRange)
	}
	return nil
}

// isSparse reports whether a file may have holes in the stream.
func isSparse(hdr *tar.Header) bool {
	if hdr.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for key := range hdr.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// grow counts a file. Of its size, data takes space.
func (q *quota) grow(size, data int64) error {
	if size < 0 || q.bytes+size > q.limits.Bytes || q.bytes+size < q.bytes {
		return fmt.Errorf("layer unpacks to more than %d bytes: %w", q.limits.Bytes, errdefs.ErrOutOfRange)
	}
	q.bytes += size
	if data > spaceStep || q.entries-q.looked >= entryStep {
		q.looked = q.entries
		return q.room(data + entryCost)
	}
	return nil
}

func checkName(name string) error {
	if len(name) > maxName {
		return fmt.Errorf("%d bytes, the limit is %d: %w", len(name), maxName, errdefs.ErrInvalidArgument)
	}
	if strings.IndexByte(name, 0) >= 0 {
		return fmt.Errorf("has a NUL byte: %w", errdefs.ErrInvalidArgument)
	}
	for part := range strings.SplitSeq(name, "/") {
		if len(part) > maxComponent {
			return fmt.Errorf("component of %d bytes, the limit is %d: %w", len(part), maxComponent, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// note remembers which directories the layer names and which it only uses.
func (q *quota) note(hdr *tar.Header) error {
	name := strings.TrimPrefix(path.Clean("/"+hdr.Name), "/")
	if hdr.Typeflag == tar.TypeDir && name != "" {
		q.dirs[name] = true
	}
	parent := path.Dir(name)
	if parent == q.parent {
		return nil
	}
	q.parent = parent
	for dir := parent; dir != "." && dir != "/"; dir = path.Dir(dir) {
		if _, known := q.dirs[dir]; known {
			return nil
		}
		if err := q.count(); err != nil {
			return err
		}
		if err := q.keep(len(dir)); err != nil {
			return err
		}
		q.dirs[dir] = false
	}
	return nil
}

// implied lists the directories without an entry, parents before children.
func (q *quota) implied() []string {
	var list []string
	for dir, named := range q.dirs {
		if !named {
			list = append(list, dir)
		}
	}
	slices.Sort(list)
	return list
}

// wanted leaves out device nodes where they could be used: an image has no business with the guest's devices, and those
// that a container needs are made by its runtime.
func (u *Unpacker) wanted(ctx context.Context, hdr *tar.Header) bool {
	if hdr.Typeflag != tar.TypeChar && hdr.Typeflag != tar.TypeBlock {
		return true
	}
	if u.devices {
		return true
	}
	log.G(ctx).WithFields(log.Fields{"major": hdr.Devmajor, "minor": hdr.Devminor}).Debug("layer's device node left out")
	return false
}
