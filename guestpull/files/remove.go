package files

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"

	guestpb "github.com/coffer-project/coffer/proto/guestpull/v1"
)

// maxRemoved bounds the paths of one request.
const maxRemoved = 256

// RemoveFiles removes files, links and whole directories, and gives back what they count for. No link is followed, what is not
// there is no error. Errors: errdefs.ErrInvalidArgument for a path that CopyFile would not take; nothing is removed then.
func (r *Receiver) RemoveFiles(_ context.Context, wire *guestpb.RemoveFilesRequest) error {
	if len(wire.GetPaths()) > maxRemoved {
		return fmt.Errorf("remove files: %w", invalid("%d paths, at most %d are taken", len(wire.GetPaths()), maxRemoved))
	}
	names := make([]string, 0, len(wire.GetPaths()))
	for _, full := range wire.GetPaths() {
		name, err := checkPath(r.dir, full)
		if err != nil {
			return fmt.Errorf("remove files: %w", err)
		}
		names = append(names, name)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.open(); err != nil {
		return fmt.Errorf("remove files: %w", err)
	}
	for _, name := range names {
		if err := r.remove(name); err != nil {
			return fmt.Errorf("remove file %s: %w: %w", name, err, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

// remove forgets a name only when it is gone: what cannot be removed goes on counting.
func (r *Receiver) remove(name string) error {
	for other := range r.inFlight {
		if within(other, name) {
			r.abandon(other)
		}
	}
	if err := r.root.RemoveAll(name); err != nil {
		return err
	}
	for other, size := range r.entries {
		if within(other, name) {
			r.bytes -= size
			delete(r.entries, other)
			delete(r.opened, other)
		}
	}
	for other := range r.openers {
		if within(other, name) {
			delete(r.openers, other)
		}
	}
	return nil
}
