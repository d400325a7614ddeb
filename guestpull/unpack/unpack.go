// Package unpack turns the packed tar stream of a layer into a directory that the kernel's overlay can use as a lower
// layer. The stream is hostile: sizes, counts and names are bounded while it is read, and names never lead outside of the
// directory, which the kernel sees to, see tree.
//
// The package must never publish what it writes. A layer is poison until its stream ended without an error and its
// digest was compared, which is for the caller.
package unpack

import (
	"archive/tar"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"sync"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"

	"github.com/coffer-project/coffer/guestpull/mediatype"
)

const bufferSize = 128 << 10

// Limits bounds what one layer may unpack to. A limit of 0 is the default's.
type Limits struct {
	// Bytes is the largest sum of file sizes, and the largest tar stream.
	Bytes int64
	// Entries is the largest number of files, directories, links and markers, with the directories that it only implies.
	Entries int
	// Depth is the largest number of components of a name.
	Depth int
	// Names is the most of names that may be kept in memory until the layer ends, in bytes: those of directories, whiteouts
	// and links.
	Names int64
	// Sparse is the largest sum of the sizes of sparse files. Their holes take no space, and time to read.
	Sparse int64
	// Xattrs is the largest sum of the extended attributes of one entry in bytes.
	Xattrs int
	// Window is the largest zstd window in bytes, which is what a decoder must keep in memory.
	Window uint64
}

// DefaultLimits bound memory, not honest images: they allow what registries hold. Space is bounded by Unpacker's space check.
func DefaultLimits() Limits {
	return Limits{
		Bytes: 1 << 40, Entries: 4 << 20, Depth: 256, Names: 64 << 20, Sparse: 32 << 30, Xattrs: 256 << 10, Window: 64 << 20,
	}
}

// orDefault fills in what is not set.
func (l Limits) orDefault() Limits {
	d := DefaultLimits()
	return Limits{
		Bytes: cmp.Or(l.Bytes, d.Bytes), Entries: cmp.Or(l.Entries, d.Entries), Depth: cmp.Or(l.Depth, d.Depth),
		Names: cmp.Or(l.Names, d.Names), Sparse: cmp.Or(l.Sparse, d.Sparse), Xattrs: cmp.Or(l.Xattrs, d.Xattrs),
		Window: cmp.Or(l.Window, d.Window),
	}
}

// Unpacker unpacks layers.
type Unpacker struct {
	limits  Limits
	space   func(dir string) (int64, error)
	devices bool
	place   place
	calls   calls
	mask    int64 // of modes that files do not get when they are made
	spread  func() bool
	// Decoders of layers that are done; a new one costs as much memory as it keeps.
	gzips, zstds sync.Pool
}

// Option changes an Unpacker.
type Option func(*Unpacker)

// WithSpace makes the unpacker ask, before each file and every few MiB, how many bytes may still be written to the layer's folder.
// A layer that does not fit is then refused while there is still room for the guest to live in.
func WithSpace(space func(dir string) (int64, error)) Option {
	return func(u *Unpacker) { u.space = space }
}

// WithDevices creates device nodes. Without it they are left out. To be used only where the store is mounted nodev.
func WithDevices() Option {
	return func(u *Unpacker) { u.devices = true }
}

// WithOwnRoot says that the process is there for one layer alone, whose directory is its root: there is no /proc, the
// working directory may be changed, modes are not masked, and system calls may hold up everything.
func WithOwnRoot() Option {
	return func(u *Unpacker) { u.place, u.calls, u.mask = ownPlace{}, calls{direct: true}, 0 }
}

// WithSpread makes decompression run beside the rest whenever spread tells that there is a processor to spare.
func WithSpread(spread func() bool) Option {
	return func(u *Unpacker) { u.spread = spread }
}

// spaceIn is the question for one folder, nil when it is not to be asked.
func (u *Unpacker) spaceIn(dir string) func() (int64, error) {
	if u.space == nil {
		return nil
	}
	return func() (int64, error) { return u.space(dir) }
}

// New returns an Unpacker.
func New(limits Limits, opts ...Option) *Unpacker {
	u := &Unpacker{limits: limits.orDefault(), place: procPlace{}, mask: umask(), spread: func() bool { return false }}
	for _, opt := range opts {
		opt(u)
	}
	return u
}

// Limits returns what New was given.
func (u *Unpacker) Limits() Limits { return u.limits }

// Devices reports whether device nodes are created.
func (u *Unpacker) Devices() bool { return u.devices }

// Space returns how many bytes may still be written to a layer's directory; a negative number is no limit.
func (u *Unpacker) Space(dir string) (int64, error) {
	if u.space == nil {
		return -1, nil
	}
	return u.space(dir)
}

// Decompress returns the tar stream of a packed layer. The reader must be closed; it does not close r.
func (u *Unpacker) Decompress(r io.Reader, c mediatype.Compression) (io.ReadCloser, error) {
	if c == mediatype.None {
		return io.NopCloser(r), nil
	}
	d, err := u.decoder(c)
	if err != nil {
		return nil, err
	}
	d.buf.Reset(r)
	// A gzip header is read at once, so a layer that is no gzip fails here.
	if err := d.reset(d.buf); err != nil {
		return nil, fmt.Errorf("read %s header: %w", c, classify(err))
	}
	return d, nil
}

// Apply unpacks a tar stream to dir, which must exist and be empty, and reads the stream to its end. Whiteouts become
// what overlay takes for them: character devices 0:0 and trusted.overlay.opaque.
//
// size is the sum of file sizes in bytes. deferred is what needs the layers below, see Complete.
func (u *Unpacker) Apply(ctx context.Context, dir string, r io.Reader) (size int64, deferred *Deferred, err error) {
	// What an image can contain must not depend on the umask of the process, and entries without parents get 0755.
	if err := os.Chmod(dir, 0o755); err != nil {
		return 0, nil, fmt.Errorf("prepare layer directory: %w", err)
	}
	w, err := u.newWriter(dir)
	if err != nil {
		return 0, nil, err
	}
	defer w.tree.close()
	q := newQuota(u.limits, u.spaceIn(dir), r)
	if err := u.apply(ctx, w, q); err != nil {
		return 0, nil, fmt.Errorf("unpack layer: %w", classify(err))
	}
	return q.bytes, &Deferred{Implied: q.implied(), Links: w.links}, nil
}

func (u *Unpacker) apply(ctx context.Context, w *writer, q *quota) error {
	for tr := newEntries(q); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		hdr, err := tr.Next()
		if err == io.EOF { //nolint:errorlint // a wrapped one is no end
			break
		}
		if err != nil {
			return err
		}
		hdr.Name = path.Clean(hdr.Name)
		if len(hdr.PAXRecords) > 0 {
			// What is kept of a name must not keep all of the extended header that it is a part of.
			hdr.Name = strings.Clone(hdr.Name)
		}
		if err := q.entry(hdr); err != nil {
			return err
		}
		if !u.wanted(ctx, hdr) {
			continue
		}
		if err := w.write(ctx, hdr, tr); err != nil {
			return err
		}
	}
	if err := w.settle(); err != nil {
		return err
	}
	// The tar reader stops at the end marker; digest and HMAC cover what follows it, too.
	_, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{q}, w.buf)
	return err
}

// names reports whether an error of the kernel is about what a layer's entries are called or where they lie, which is for
// the layer to answer.
func names(err error) bool {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return false
	}
	switch errno {
	case syscall.ENOENT, syscall.EEXIST, syscall.ENOTDIR, syscall.EISDIR, syscall.ENOTEMPTY, syscall.ELOOP, syscall.ENAMETOOLONG,
		syscall.EMLINK, syscall.EINVAL, syscall.ERANGE, syscall.E2BIG, syscall.EXDEV:
		return true
	}
	return false
}

// classify gives errors of the kernel and of decoders the class that the caller decides by. Other errors pass unchanged.
func classify(err error) error {
	switch corrupt, hasPath := errors.AsType[*os.PathError](err); {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.ENOMEM):
		return fmt.Errorf("%w: %w", err, errdefs.ErrResourceExhausted)
	case errors.Is(err, zstd.ErrWindowSizeExceeded), errors.Is(err, zstd.ErrDecoderSizeExceeded):
		return fmt.Errorf("%w: %w", err, errdefs.ErrOutOfRange)
	case !errdefs.IsUnknown(errdefs.Resolve(err)):
		// It was given a class further down.
		return err
	case hasPath:
		// A path of the workload is in it; the operation and the errno are enough for an admin.
		return classify(fmt.Errorf("%s: %w", corrupt.Op, corrupt.Err))
	case names(err), errors.Is(err, tar.ErrHeader), errors.Is(err, tar.ErrFieldTooLong),
		errors.Is(err, zstd.ErrMagicMismatch), errors.Is(err, zstd.ErrCRCMismatch), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	return err
}
