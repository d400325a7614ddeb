// Package files is a store in files: <dir>/<kind>/.../<name>, readable by the broker's user only. Several processes may share the
// directory, also over a network file system that has rename and link.
//
// A value is replaced by writing a temporary file, syncing it and renaming it, so readers and crashes see the old or the new one.
// All paths are resolved inside the directory (os.Root); symbolic links cannot lead out of it.
package files

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
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/owner/broker/store"
)

// tempPrefix begins the names of unfinished files. No entry's name can begin with a dot.
const tempPrefix = ".new-"

// tempLife is when an unfinished file counts as left by a crash. Younger ones may belong to another process.
const tempLife = time.Hour

// Store implements store.Store.
type Store struct {
	root *os.Root
}

// Open opens the directory, creating it with mode 0700 where it is missing, and removes what an earlier crash left unfinished.
// A directory that others than its owner can enter is FailedPrecondition.
func Open(dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create store directory: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open store directory: %w", err)
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
		return fmt.Errorf("inspect store directory: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("store directory %s has mode %04o, so others can look into it; run chmod 700 %s: %w", dir, mode, dir, errdefs.ErrFailedPrecondition)
	}
	return fs.WalkDir(s.root.FS(), ".", func(name string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist): // another process has just finished it
			return nil
		case err != nil:
			return fmt.Errorf("scan store directory: %w", err)
		case entry.IsDir() || !strings.HasPrefix(entry.Name(), tempPrefix):
			return nil
		}
		if info, err := entry.Info(); err != nil || time.Since(info.ModTime()) < tempLife {
			return nil
		}
		if err := s.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove unfinished file: %w", err)
		}
		return nil
	})
}

// Close implements store.Store.
func (s *Store) Close() error { return s.root.Close() }

// Get implements store.Store.
func (s *Store) Get(_ context.Context, name string) ([]byte, error) {
	if err := store.CheckName(name); err != nil {
		return nil, err
	}
	f, err := s.root.Open(name)
	if err != nil {
		return nil, notFound(name, "read", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, notFound(name, "read", err)
	}
	if !info.Mode().IsRegular() || info.Size() > store.MaxValue {
		return nil, fmt.Errorf("%s is not a file of at most %d bytes: %w", name, store.MaxValue, errdefs.ErrFailedPrecondition)
	}
	data, err := io.ReadAll(io.LimitReader(f, store.MaxValue+1))
	if err != nil {
		return nil, notFound(name, "read", err)
	}
	if len(data) > store.MaxValue {
		return nil, fmt.Errorf("%s is larger than %d bytes: %w", name, store.MaxValue, errdefs.ErrFailedPrecondition)
	}
	return data, nil
}

// Put implements store.Store.
func (s *Store) Put(_ context.Context, name string, data []byte) error {
	return s.write(name, data, s.root.Rename)
}

// Create implements store.Store. A link, unlike a rename, fails where the name exists.
func (s *Store) Create(_ context.Context, name string, data []byte) error {
	return s.write(name, data, func(temp, name string) error {
		if err := s.root.Link(temp, name); err != nil {
			return err
		}
		return s.root.Remove(temp)
	})
}

// write makes a temporary file with the data and publishes it.
func (s *Store) write(name string, data []byte, publish func(temp, name string) error) (retErr error) {
	if err := store.CheckName(name); err != nil {
		return err
	}
	if err := store.CheckValue(name, data); err != nil {
		return err
	}
	durable := !strings.HasPrefix(name, store.KindSession+"/")
	dir := path.Dir(name)
	if err := s.root.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("create folder of %s: %w", name, err)
	}
	temp := path.Join(dir, tempPrefix+rand.Text())
	defer func() {
		if retErr == nil {
			return
		}
		if err := s.root.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
			retErr = errors.Join(retErr, err)
		}
	}()
	if err := s.fill(temp, data, durable); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := publish(temp, name); errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s: %w", name, errdefs.ErrAlreadyExists)
	} else if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if !durable {
		return nil
	}
	return s.sync(name)
}

func (s *Store) fill(temp string, data []byte, durable bool) error {
	f, err := s.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close() // for the errors below; a second close changes nothing
	if _, err := f.Write(data); err != nil {
		return err
	}
	if durable {
		if err := f.Sync(); err != nil {
			return err
		}
	}
	return f.Close()
}

// Delete implements store.Store.
func (s *Store) Delete(_ context.Context, name string) error {
	if err := store.CheckName(name); err != nil {
		return err
	}
	if err := s.root.Remove(name); err != nil {
		return notFound(name, "delete", err)
	}
	if !strings.HasPrefix(name, store.KindSession+"/") {
		return s.sync(name)
	}
	// The last session of its minute takes the folder along; for all others it is not empty.
	if err := s.root.Remove(path.Dir(name)); err != nil && !errors.Is(err, syscall.ENOTEMPTY) && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete folder of %s: %w", name, err)
	}
	return nil
}

// List implements store.Store. Files that no name leads to are left out.
func (s *Store) List(ctx context.Context, folder string) ([]string, error) {
	if err := store.CheckFolder(folder); err != nil {
		return nil, err
	}
	names := []string{}
	err := fs.WalkDir(s.root.FS(), folder, func(name string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist): // never made, or deleted meanwhile
			return nil
		case err != nil:
			return fmt.Errorf("list %s: %w", folder, err)
		case ctx.Err() != nil:
			return fmt.Errorf("list %s: %w", folder, ctx.Err())
		case entry.Type().IsRegular() && store.CheckName(name) == nil:
			names = append(names, name)
		}
		return nil
	})
	slices.Sort(names)
	return names, err
}

// sync makes the change of a name durable, with the folders that may have been made for it.
func (s *Store) sync(name string) error {
	for dir := name; dir != "."; {
		dir = path.Dir(dir)
		f, err := s.root.Open(dir)
		if err != nil {
			return fmt.Errorf("sync store directory: %w", err)
		}
		err = f.Sync()
		if closeErr := f.Close(); err == nil {
			err = closeErr
		}
		if err != nil {
			return fmt.Errorf("sync store directory: %w", err)
		}
	}
	return nil
}

func notFound(name, verb string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", name, errdefs.ErrNotFound)
	}
	return fmt.Errorf("%s %s: %w", verb, name, err)
}
