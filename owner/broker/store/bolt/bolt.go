// Package bolt is a store in one file (bbolt). Only one process can have the file open: it is for a broker that stands alone.
package bolt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	bbolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/coffer-project/coffer/owner/broker/store"
)

// lockWait is how long Open waits for another process to let go of the file.
const lockWait = time.Second

var bucket = []byte("entries")

// Store implements store.Store.
type Store struct{ db *bbolt.DB }

// Open opens or creates the file with mode 0600. One that another process has open is Unavailable; one that others can read is
// FailedPrecondition.
func Open(file string) (*Store, error) {
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return nil, fmt.Errorf("create folder of the store: %w", err)
	}
	db, err := bbolt.Open(file, 0o600, &bbolt.Options{Timeout: lockWait})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fmt.Errorf("store %s is open in another process: stop it, or use another kind of store for several brokers: %w", file, errdefs.ErrUnavailable)
	}
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", file, err)
	}
	s := &Store{db: db}
	if err := s.prepare(file); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return s, nil
}

func (s *Store) prepare(file string) error {
	info, err := os.Stat(file)
	if err != nil {
		return fmt.Errorf("inspect store: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("store %s has mode %04o, so others can read it; run chmod 600 %s: %w", file, mode, file, errdefs.ErrFailedPrecondition)
	}
	return s.db.Update(func(tx *bbolt.Tx) error {
		_, err := tx.CreateBucketIfNotExists(bucket)
		return err
	})
}

// Close implements store.Store.
func (s *Store) Close() error { return s.db.Close() }

// Get implements store.Store.
func (s *Store) Get(_ context.Context, name string) (data []byte, err error) {
	if err := store.CheckName(name); err != nil {
		return nil, err
	}
	err = s.db.View(func(tx *bbolt.Tx) error {
		data = bytes.Clone(tx.Bucket(bucket).Get([]byte(name))) // the original lives as long as tx
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if data == nil {
		return nil, fmt.Errorf("%s: %w", name, errdefs.ErrNotFound)
	}
	return data, nil
}

// Put implements store.Store.
func (s *Store) Put(_ context.Context, name string, data []byte) error {
	return s.write(name, data, func(*bbolt.Bucket) error { return nil })
}

// Create implements store.Store.
func (s *Store) Create(_ context.Context, name string, data []byte) error {
	return s.write(name, data, func(b *bbolt.Bucket) error {
		if b.Get([]byte(name)) != nil {
			return errdefs.ErrAlreadyExists
		}
		return nil
	})
}

func (s *Store) write(name string, data []byte, check func(*bbolt.Bucket) error) error {
	if err := store.CheckName(name); err != nil {
		return err
	}
	if err := store.CheckValue(name, data); err != nil {
		return err
	}
	err := s.db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucket)
		if err := check(b); err != nil {
			return err
		}
		return b.Put([]byte(name), data)
	})
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

// Delete implements store.Store.
func (s *Store) Delete(_ context.Context, name string) error {
	if err := store.CheckName(name); err != nil {
		return err
	}
	err := s.db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucket)
		if b.Get([]byte(name)) == nil {
			return errdefs.ErrNotFound
		}
		return b.Delete([]byte(name))
	})
	if err != nil {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	return nil
}

// List implements store.Store.
func (s *Store) List(_ context.Context, folder string) ([]string, error) {
	if err := store.CheckFolder(folder); err != nil {
		return nil, err
	}
	names := []string{}
	prefix := []byte(folder + "/")
	err := s.db.View(func(tx *bbolt.Tx) error {
		cursor := tx.Bucket(bucket).Cursor()
		for key, _ := cursor.Seek(prefix); key != nil && bytes.HasPrefix(key, prefix); key, _ = cursor.Next() {
			names = append(names, string(key))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", folder, err)
	}
	return names, nil
}
