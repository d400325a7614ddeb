package files

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/proto/sealed"
)

// maxSealed bounds the sealed files of one mount.
const maxSealed = 256

// errReplaced is for a file that another one has taken the place of while its secret was fetched.
var errReplaced = fmt.Errorf("the file was begun again meanwhile: %w", errdefs.ErrFailedPrecondition)

// opener turns what stands in a sealed file into the secret.
type opener = func(ctx context.Context, text string) ([]byte, error)

// Sealed returns what stands in the sealed files that the host has copied to a path or below it, by their paths from there ("." for the
// file itself). A file is sealed when it begins as sealed secrets do; one line end after the secret does not count. InvalidArgument: the
// path is none that CopyFile takes, or a file is too large for a sealed secret. ResourceExhausted: they are too many.
func (r *Receiver) Sealed(full string) (map[string]string, error) {
	name, err := checkPath(r.dir, full)
	if err != nil {
		return nil, fmt.Errorf("find sealed files: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	found, err := r.sealedBelow(name)
	if err != nil {
		return nil, fmt.Errorf("find sealed files: %w", err)
	}
	out := make(map[string]string, len(found))
	for other, text := range found {
		rel := strings.TrimPrefix(strings.TrimPrefix(other, name), "/")
		if rel == "" {
			rel = "."
		}
		out[rel] = text
	}
	return out, nil
}

// Open puts secrets in the places of the sealed files at a path and below it, and tells in how many. From then on files that come there by
// CopyFile are opened before they appear, so that what updates a volume brings is never seen sealed; RemoveFiles ends that. When Open fails
// nothing more is opened there. Errors are those of Sealed and of open, and name the file.
func (r *Receiver) Open(ctx context.Context, full string, open opener) (int, error) {
	name, err := checkPath(r.dir, full)
	if err != nil {
		return 0, fmt.Errorf("open sealed files: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, known := r.entries[name]; !known {
		return 0, nil
	}
	// Before the files are looked at: what comes from now on is opened by CopyFile.
	r.openers[name] = open
	found, err := r.sealedBelow(name)
	for _, other := range slices.Sorted(maps.Keys(found)) {
		if err == nil {
			if err = r.openFile(ctx, other, found[other], open); err != nil {
				err = fmt.Errorf("file %.256q: %w", strings.TrimPrefix(other, name+"/"), err)
			}
		}
	}
	if err != nil {
		delete(r.openers, name)
		return 0, err
	}
	return len(found), nil
}

// openerOf returns what opens files of that name; nil where sealed files stay as they are.
func (r *Receiver) openerOf(name string) opener {
	for other, open := range r.openers {
		if within(name, other) {
			return open
		}
	}
	return nil
}

// within tells whether name is other or below it.
func within(name, other string) bool { return name == other || strings.HasPrefix(name, other+"/") }

// sealedBelow looks at what the host has copied, and at nothing that a container has put there.
func (r *Receiver) sealedBelow(name string) (map[string]string, error) {
	out := map[string]string{}
	for other := range r.entries {
		if !within(other, name) || r.opened[other] {
			continue
		}
		text, is, err := r.readSealed(other)
		if err != nil {
			return nil, fmt.Errorf("file %.256q: %w", other, err)
		}
		if is {
			out[other] = text
		}
		if len(out) > maxSealed {
			return nil, fmt.Errorf("more than %d sealed files in one mount: %w", maxSealed, errdefs.ErrResourceExhausted)
		}
	}
	return out, nil
}

// readSealed returns a file's text if it is sealed. Folders and links are not.
func (r *Receiver) readSealed(name string) (text string, is bool, retErr error) {
	info, err := r.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !info.Mode().IsRegular() {
		return "", false, nil
	}
	if err != nil {
		return "", false, err
	}
	// A container may have put something else there since.
	f, err := r.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return "", false, err
	}
	defer func() { retErr = errors.Join(retErr, f.Close()) }()
	begin := make([]byte, len(sealed.Prefix))
	if _, err := io.ReadFull(f, begin); err != nil || !sealed.Is(string(begin)) {
		return "", false, nil // too short, or not readable: not a file of ours any more
	}
	const lineEnd = 2
	rest, err := io.ReadAll(io.LimitReader(f, sealed.MaxText+lineEnd))
	if err != nil {
		return "", false, err
	}
	text = string(begin) + string(rest)
	text = strings.TrimSuffix(strings.TrimSuffix(text, "\n"), "\r")
	if len(text) > sealed.MaxText {
		return "", false, fmt.Errorf("it begins with %q and has more than the %d bytes of a sealed secret: %w", sealed.Prefix, sealed.MaxText, errdefs.ErrInvalidArgument)
	}
	return text, true, nil
}

// unlocked does what may take long without the lock.
func (r *Receiver) unlocked(do func() ([]byte, error)) ([]byte, error) {
	r.mu.Unlock()
	defer r.mu.Lock()
	return do()
}

// openFile exchanges a sealed file for one with the secret, in one step. A file that has changed meanwhile came by CopyFile, and is open.
func (r *Receiver) openFile(ctx context.Context, name, text string, open opener) error {
	value, err := r.unlocked(func() ([]byte, error) { return open(ctx, text) })
	if err != nil {
		return err
	}
	now, is, err := r.readSealed(name)
	if err != nil || !is || now != text || r.opened[name] {
		return err
	}
	info, err := r.root.Lstat(name)
	if err != nil {
		return err
	}
	if err := r.fits(int64(len(value)) - r.entries[name]); err != nil {
		return err
	}
	temporary := temporaryName(name) + ".open" // no request's: the file in flight under this name has another
	if err := r.fill(temporary, value, info); err != nil {
		return errors.Join(err, r.discard(temporary))
	}
	if err := r.publish(temporary, name, int64(len(value))); err != nil {
		return errors.Join(err, r.discard(temporary))
	}
	r.opened[name] = true
	return nil
}

// fill makes a file with the owner and the permissions of another.
func (r *Receiver) fill(name string, value []byte, like fs.FileInfo) (retErr error) {
	f, err := r.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() { retErr = errors.Join(retErr, f.Close()) }()
	if _, err := f.Write(value); err != nil {
		return err
	}
	uid, gid, err := ownerOf(like)
	if err != nil {
		return err
	}
	return errors.Join(f.Chown(uid, gid), f.Chmod(like.Mode()))
}

func (r *Receiver) discard(name string) error {
	if err := r.root.Remove(name); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// openArrived opens a file that has come completely and has no name yet, if it is sealed and somebody opens files there.
func (r *Receiver) openArrived(ctx context.Context, name string, t *transfer) (bool, error) {
	open := r.openerOf(name)
	if open == nil {
		return false, nil
	}
	text, is, err := r.readSealed(t.temporary)
	if err != nil || !is {
		return false, err
	}
	info, err := r.root.Lstat(t.temporary)
	if err != nil {
		return false, err
	}
	value, err := r.unlocked(func() ([]byte, error) { return open(ctx, text) })
	if r.inFlight[name] != t {
		return false, errReplaced
	}
	if err != nil {
		return false, err
	}
	if err := r.fits(int64(len(value)) - t.size); err != nil {
		return false, err
	}
	if err := r.fill(t.temporary, value, info); err != nil {
		return false, err
	}
	r.bytes += int64(len(value)) - t.size
	t.size = int64(len(value))
	return true, nil
}
