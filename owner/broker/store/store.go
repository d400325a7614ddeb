// Package store keeps what a broker must not forget: resources, policies, reference values and, where several instances stand behind one
// address, the tokens of attested sessions. The backends are in packages of their own (files, bolt, vault); whatever the backend, Sealed
// encrypts the values before it sees them.
//
// Names are paths whose first segment is the kind of entry. Names are not secret: they stay readable at rest.
package store

import (
	"context"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/kbs"
	"github.com/coffer-project/coffer/proto/lazyregexp"
)

// The kinds of entries, the first segments of names.
const (
	KindResource  = "resource"
	KindPolicy    = "policy"
	KindReference = "reference"
	// KindSession is for entries that need not survive a crash of the machine: backends may keep them cheaply.
	KindSession = "session"
	// KindKey is for the wrapped keys of Sealed.
	KindKey = "key"
)

// MaxValue bounds a value in bytes: the largest resource, sealed.
const MaxValue = kbs.MaxResource + 1024

// maxSegments bounds the depth of names, so that backends that walk folders end.
const maxSegments = 6

var segment = lazyregexp.New(`^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,199}$`)

// Store keeps values by name. Calls may be concurrent, and several processes may use one backend where its package says so. What Get
// returns is one whole value that was put, never a mixture.
type Store interface {
	// Get returns a value. NotFound where there is none, Unavailable where the backend cannot be asked now.
	Get(ctx context.Context, name string) ([]byte, error)
	// Put creates or replaces a value. When it returns nil, the value survives a crash (but see KindSession).
	Put(ctx context.Context, name string, data []byte) error
	// Create is Put for a name that must be new, also among processes: of several calls one succeeds, the others get AlreadyExists.
	Create(ctx context.Context, name string, data []byte) error
	// Delete removes a value. NotFound where there is none.
	Delete(ctx context.Context, name string) error
	// List returns the names below a folder (a name's first segments) in order; none is no error.
	List(ctx context.Context, folder string) ([]string, error)
	// Close releases the backend.
	Close() error
}

// CheckName returns InvalidArgument for what no entry can be called. Backends call it before anything else.
func CheckName(name string) error {
	segments := strings.Split(name, "/")
	if len(segments) < 2 || len(segments) > maxSegments {
		return fmt.Errorf("store name has %d segments, want 2 to %d: %w", len(segments), maxSegments, errdefs.ErrInvalidArgument)
	}
	return checkSegments(segments)
}

// CheckFolder is CheckName for List.
func CheckFolder(folder string) error {
	segments := strings.Split(folder, "/")
	if len(segments) > maxSegments {
		return fmt.Errorf("store folder has %d segments: %w", len(segments), errdefs.ErrInvalidArgument)
	}
	return checkSegments(segments)
}

func checkSegments(segments []string) error {
	for _, s := range segments {
		if !segment.MatchString(s) {
			return fmt.Errorf("store name has a segment that is not of letters, digits, '_', '-' and '.': %w", errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// CheckValue returns InvalidArgument for a value that is empty or too large.
func CheckValue(name string, data []byte) error {
	if len(data) == 0 || len(data) > MaxValue {
		return fmt.Errorf("%s has %d bytes, want 1 to %d: %w", name, len(data), MaxValue, errdefs.ErrInvalidArgument)
	}
	return nil
}
