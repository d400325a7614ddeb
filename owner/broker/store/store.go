// Package store keeps a broker's resources in files: <dir>/<repository>/<type>/<tag>, readable by the broker's user only. The files hold
// keys in the clear, so the directory belongs on an encrypted disk of a machine that the owner trusts.
//
// A resource is replaced by writing a temporary file, syncing it and renaming it, so readers and crashes see the old or the new one.
// All paths are resolved inside the directory (os.Root); symbolic links cannot lead out of it.
package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/kbs"
)

// tempPrefix begins the names of unfinished files. No resource's name can begin with a dot.
const tempPrefix = ".new-"

// Store implements the broker's resource store.
type Store struct {
	root *os.Root
}

// Open opens the directory, creating it with mode 0700 where it is missing, and removes what an earlier crash left unfinished.
// A directory that others than its owner can enter is FailedPrecondition.
func Open(dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create resource directory: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open resource directory: %w", err)
	}
	s := &Store{root: root}
	if err := s.prepare(dir); err != nil {
		root.Close()
		return nil, err
	}
	return s, nil
}

func (s *Store) prepare(dir string) error {
	info, err := s.root.Stat(".")
	if err != nil {
		return fmt.Errorf("inspect resource directory: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("resource directory %s has mode %04o, so others can look into it; run chmod 700 %s: %w", dir, mode, dir, errdefs.ErrFailedPrecondition)
	}
	return fs.WalkDir(s.root.FS(), ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("scan resource directory: %w", err)
		}
		if !entry.IsDir() && strings.HasPrefix(entry.Name(), tempPrefix) {
			if err := s.root.Remove(name); err != nil {
				return fmt.Errorf("remove unfinished resource: %w", err)
			}
		}
		return nil
	})
}

// Close releases the directory.
func (s *Store) Close() error { return s.root.Close() }

// Get returns a resource. One that does not exist is NotFound.
func (s *Store) Get(_ context.Context, uri kbs.ResourceURI) ([]byte, error) {
	if err := uri.Validate(); err != nil {
		return nil, err
	}
	f, err := s.root.Open(uri.Path())
	if err != nil {
		return nil, notFound(uri, "read", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, notFound(uri, "read", err)
	}
	if !info.Mode().IsRegular() || info.Size() > kbs.MaxResource {
		return nil, fmt.Errorf("resource %s is not a file of at most %d bytes: %w", uri.Path(), kbs.MaxResource, errdefs.ErrFailedPrecondition)
	}
	data, err := io.ReadAll(io.LimitReader(f, kbs.MaxResource+1))
	if err != nil {
		return nil, notFound(uri, "read", err)
	}
	if len(data) > kbs.MaxResource {
		return nil, fmt.Errorf("resource %s is larger than %d bytes: %w", uri.Path(), kbs.MaxResource, errdefs.ErrFailedPrecondition)
	}
	return data, nil
}

// Put creates or replaces a resource of 1 to kbs.MaxResource bytes. When it returns nil the resource is on the disk.
func (s *Store) Put(_ context.Context, uri kbs.ResourceURI, data []byte) (retErr error) {
	if err := uri.Validate(); err != nil {
		return err
	}
	if len(data) == 0 || len(data) > kbs.MaxResource {
		return fmt.Errorf("resource %s has %d bytes, want 1 to %d: %w", uri.Path(), len(data), kbs.MaxResource, errdefs.ErrInvalidArgument)
	}
	dir := path.Join(uri.Repository, uri.Type)
	if err := s.root.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("create directory of resource %s: %w", uri.Path(), err)
	}
	temp := path.Join(dir, tempPrefix+rand.Text())
	f, err := s.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("write resource %s: %w", uri.Path(), err)
	}
	defer func() {
		if retErr != nil {
			f.Close() // a second close only returns an error
			if err := s.root.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
				retErr = errors.Join(retErr, err)
			}
		}
	}()
	if _, err := f.Write(data); err != nil {
		return fmt.Errorf("write resource %s: %w", uri.Path(), err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("write resource %s: %w", uri.Path(), err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("write resource %s: %w", uri.Path(), err)
	}
	if err := s.root.Rename(temp, uri.Path()); err != nil {
		return fmt.Errorf("replace resource %s: %w", uri.Path(), err)
	}
	return s.sync(dir, uri.Repository, ".")
}

// Delete removes a resource. One that does not exist is NotFound.
func (s *Store) Delete(_ context.Context, uri kbs.ResourceURI) error {
	if err := uri.Validate(); err != nil {
		return err
	}
	if err := s.root.Remove(uri.Path()); err != nil {
		return notFound(uri, "delete", err)
	}
	return s.sync(path.Join(uri.Repository, uri.Type))
}

// List returns the names of all resources in order. Files that no name leads to are left out.
func (s *Store) List(ctx context.Context) ([]kbs.ResourceURI, error) {
	uris := []kbs.ResourceURI{}
	err := fs.WalkDir(s.root.FS(), ".", func(name string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist): // deleted meanwhile
			return nil
		case err != nil:
			return fmt.Errorf("list resources: %w", err)
		case ctx.Err() != nil:
			return fmt.Errorf("list resources: %w", ctx.Err())
		case !entry.Type().IsRegular():
			return nil
		}
		if uri, err := kbs.ParseResourcePath(name); err == nil {
			uris = append(uris, uri)
		}
		return nil
	})
	slices.SortFunc(uris, func(a, b kbs.ResourceURI) int { return strings.Compare(a.Path(), b.Path()) })
	return uris, err
}

// sync makes renames and new directories durable.
func (s *Store) sync(dirs ...string) error {
	for _, dir := range dirs {
		f, err := s.root.Open(dir)
		if err != nil {
			return fmt.Errorf("sync resource directory: %w", err)
		}
		err = f.Sync()
		if closeErr := f.Close(); err == nil {
			err = closeErr
		}
		if err != nil {
			return fmt.Errorf("sync resource directory: %w", err)
		}
	}
	return nil
}

func notFound(uri kbs.ResourceURI, verb string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("resource %s: %w", uri.Path(), errdefs.ErrNotFound)
	}
	return fmt.Errorf("%s resource %s: %w", verb, uri.Path(), err)
}
