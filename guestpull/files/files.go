package files

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	agentpb "github.com/coffer-project/coffer/proto/agent"
)

// incoming is where files grow until they are whole; no request can name it.
const incoming = ".incoming"

// Limits on what a host can make the guest hold.
const (
	maxEntries  = 1 << 16
	maxInFlight = 64
	// memoryShare is the part of guest memory that files may take, as a divisor.
	memoryShare = 4
)

// Receiver writes the host's files below one directory. Its methods are safe for concurrent use.
type Receiver struct {
	dir      string
	maxBytes int64

	mu       sync.Mutex
	root     *os.Root // opened at the first request: the directory's file system may not be mounted before
	entries  map[string]int64
	opened   map[string]bool   // entries in which a secret is: what it begins with says nothing
	openers  map[string]opener // below which names sealed files are opened
	inFlight map[string]*transfer
	bytes    int64 // of whole files and, for those in flight, what they will have
}

// transfer is a file of which more is to come.
type transfer struct {
	temporary string
	size      int64
	written   int64
	whole     bool // nothing more is to come
}

// New returns a receiver for BASE/shared/containers, the directory that shims name. Files may take a quarter of the
// machine's memory.
func New(base string) *Receiver {
	var info unix.Sysinfo_t
	limit := int64(64 << 20)
	if err := unix.Sysinfo(&info); err == nil {
		limit = int64(info.Totalram) * int64(info.Unit) / memoryShare
	}
	return newReceiver(filepath.Join(base, "shared", "containers"), limit)
}

func newReceiver(dir string, maxBytes int64) *Receiver {
	return &Receiver{
		dir: dir, maxBytes: maxBytes, entries: map[string]int64{}, opened: map[string]bool{}, openers: map[string]opener{}, inFlight: map[string]*transfer{},
	}
}

// CopyFile makes a directory or a link, or adds a piece to a file. Pieces come in order, the first at offset 0, which
// also starts again a file that was left unfinished; after the last one the file appears under its name, replacing what
// was there. Errors: errdefs.ErrInvalidArgument for a request that makes no sense, ErrFailedPrecondition for one that
// does not fit what is there, ErrResourceExhausted when the files would take too much memory; and those of Open for a sealed file.
func (r *Receiver) CopyFile(ctx context.Context, wire *agentpb.CopyFileRequest) error {
	checked, err := check(r.dir, wire)
	if err != nil {
		return fmt.Errorf("copy file: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.open(); err != nil {
		return fmt.Errorf("copy file: %w", err)
	}
	switch checked.kind {
	case directory:
		err = r.makeDir(checked)
	case symlink:
		err = r.makeLink(checked)
	default:
		err = r.addPiece(ctx, checked)
	}
	if err != nil {
		return fmt.Errorf("copy file %s: %w", checked.name, err)
	}
	return nil
}

func (r *Receiver) open() error {
	if r.root != nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Join(r.dir, incoming), 0o700); err != nil {
		return err
	}
	// Workloads of any user reach their files through here.
	if err := os.Chmod(r.dir, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(r.dir)
	r.root = root
	return err
}

// room tells whether one more entry may be made; one that replaces another costs nothing.
func (r *Receiver) room(name string) error {
	if _, known := r.entries[name]; !known && len(r.entries) >= maxEntries {
		return fmt.Errorf("more than %d files: %w", maxEntries, errdefs.ErrResourceExhausted)
	}
	return nil
}

// enter counts an entry that is there.
func (r *Receiver) enter(name string, size int64) {
	r.bytes += size - r.entries[name]
	r.entries[name] = size
}

// mkdir makes and counts a directory that nobody else can enter yet.
func (r *Receiver) mkdir(name string) error {
	if err := r.room(name); err != nil {
		return err
	}
	if err := r.root.Mkdir(name, 0o700); err != nil {
		return err
	}
	r.enter(name, 0)
	return nil
}

// makeParents makes the directories above name that are missing.
func (r *Receiver) makeParents(name string, mode fs.FileMode) error {
	for at, c := range name {
		if c != '/' {
			continue
		}
		parent := name[:at]
		switch info, err := r.root.Lstat(parent); {
		case err == nil && info.IsDir():
			continue
		case err == nil: // a link too: what is made behind it would count under a name that it does not have
			return fmt.Errorf("%s is no directory: %w", parent, errdefs.ErrFailedPrecondition)
		case !errors.Is(err, fs.ErrNotExist):
			return err
		}
		if err := r.mkdir(parent); err != nil {
			return err
		}
		// Not left to Mkdir, which the umask would weaken.
		if err := r.root.Chmod(parent, mode); err != nil {
			return err
		}
	}
	return nil
}

func (r *Receiver) makeDir(q *request) error {
	if err := r.makeParents(q.name, q.dirMode); err != nil {
		return err
	}
	info, err := r.root.Lstat(q.name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := r.mkdir(q.name); err != nil {
			return err
		}
	case err != nil:
		return err
	case !info.IsDir():
		return fmt.Errorf("something else has the name: %w", errdefs.ErrFailedPrecondition)
	}
	if err := r.root.Lchown(q.name, q.uid, q.gid); err != nil {
		return err
	}
	return r.root.Chmod(q.name, q.mode)
}

func (r *Receiver) makeLink(q *request) error {
	if err := r.makeParents(q.name, q.dirMode); err != nil {
		return err
	}
	if err := r.refuseDir(q.name); err != nil {
		return err
	}
	r.abandon(q.name)
	temporary := temporaryName(q.name)
	if err := r.root.Symlink(q.target, temporary); err != nil {
		return err
	}
	err := r.root.Lchown(temporary, q.uid, q.gid)
	if err == nil {
		err = r.publish(temporary, q.name, 0)
	}
	if err != nil {
		return errors.Join(err, r.root.Remove(temporary))
	}
	return nil
}

// addPiece writes a piece of a file, and publishes the file after its last.
func (r *Receiver) addPiece(ctx context.Context, q *request) error {
	t := r.inFlight[q.name]
	if q.offset == 0 {
		var err error
		if t, err = r.begin(q); err != nil {
			return err
		}
	}
	switch {
	case t == nil:
		return fmt.Errorf("piece at %d of a file that was not begun: %w", q.offset, errdefs.ErrFailedPrecondition)
	case t.whole || t.size != q.size || t.written != q.offset:
		return fmt.Errorf("piece at %d of %d bytes, %d of %d expected: %w", q.offset, q.size, t.written, t.size, errdefs.ErrFailedPrecondition)
	}
	if err := r.write(t, q); err != nil {
		r.abandon(q.name)
		return err
	}
	if t.written < t.size {
		return nil
	}
	t.whole = true
	open, err := r.openArrived(ctx, q.name, t)
	if err != nil {
		if !errors.Is(err, errReplaced) {
			r.abandon(q.name)
		}
		return err
	}
	r.bytes -= t.size // publish counts it under its name
	delete(r.inFlight, q.name)
	if err := r.publish(t.temporary, q.name, t.size); err != nil {
		return errors.Join(err, r.root.Remove(t.temporary))
	}
	if open {
		r.opened[q.name] = true
	}
	return nil
}

// begin reserves memory for a file and starts it anew.
func (r *Receiver) begin(q *request) (*transfer, error) {
	r.abandon(q.name)
	if len(r.inFlight) >= maxInFlight {
		return nil, fmt.Errorf("%d files are unfinished: %w", len(r.inFlight), errdefs.ErrResourceExhausted)
	}
	if err := r.fits(q.size); err != nil {
		return nil, err
	}
	if err := r.makeParents(q.name, q.dirMode); err != nil {
		return nil, err
	}
	if err := r.refuseDir(q.name); err != nil {
		return nil, err
	}
	t := &transfer{temporary: temporaryName(q.name), size: q.size}
	r.inFlight[q.name] = t
	r.bytes += t.size
	return t, nil
}

// fits tells whether files may take so many bytes more.
func (r *Receiver) fits(size int64) error {
	if size > r.maxBytes-r.bytes {
		return fmt.Errorf("%d bytes do not fit: files of the pod may take %d bytes of guest memory and have %d: %w",
			size, r.maxBytes, r.bytes, errdefs.ErrResourceExhausted)
	}
	return nil
}

// abandon forgets a file in flight.
func (r *Receiver) abandon(name string) {
	if t := r.inFlight[name]; t != nil {
		r.bytes -= t.size
		delete(r.inFlight, name)
		_ = r.root.Remove(t.temporary)
	}
}

// write adds the piece, and with the last one the owner and permissions.
func (r *Receiver) write(t *transfer, q *request) (retErr error) {
	flags := os.O_WRONLY | os.O_CREATE
	if q.offset == 0 {
		flags |= os.O_TRUNC
	}
	f, err := r.root.OpenFile(t.temporary, flags, 0o600)
	if err != nil {
		return err
	}
	defer func() { retErr = errors.Join(retErr, f.Close()) }()
	if _, err := f.WriteAt(q.data, q.offset); err != nil {
		return err
	}
	t.written += int64(len(q.data))
	if t.written < t.size {
		return nil
	}
	if err := f.Chown(q.uid, q.gid); err != nil {
		return err
	}
	return f.Chmod(q.mode)
}

// publish gives a whole file or link its name.
func (r *Receiver) publish(temporary, name string, size int64) error {
	if err := r.room(name); err != nil {
		return err
	}
	if err := r.root.Rename(temporary, name); err != nil {
		return err
	}
	r.enter(name, size)
	delete(r.opened, name)
	return nil
}

func (r *Receiver) refuseDir(name string) error {
	info, err := r.root.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.IsDir():
		return fmt.Errorf("a directory has the name: %w", errdefs.ErrFailedPrecondition)
	}
	return nil
}

// temporaryName is short whatever the name is, and differs from name to name.
func temporaryName(name string) string {
	sum := sha256.Sum256([]byte(name))
	return path.Join(incoming, hex.EncodeToString(sum[:]))
}
