package snapshotter

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
)

// hostRoots keeps the folders that stand on the host for the roots of containers (proto/hostroot). A folder is named by
// its content, so that all containers with the same content share one, and none is written for a container alone.
type hostRoots struct {
	dir string
	// use is held from the making of a folder until a record names it, and alone by who removes folders.
	use sync.RWMutex
}

// unfinishedRoot begins the name of a folder that is being written or removed.
const unfinishedRoot = "new-"

var hostRootName = regexp.MustCompile(`^[0-9a-f]{32}$`)

func (h *hostRoots) path(name string) string { return filepath.Join(h.dir, name) }

// ensure makes the folder that holds just these files, if it is not there, and returns its name. A name that ends in a
// slash is a folder. The caller holds use.
func (h *hostRoots) ensure(files map[string][]byte) (_ string, retErr error) {
	name := contentName(files)
	if h.intact(name, files) {
		return name, nil
	}
	if err := os.MkdirAll(h.dir, 0o700); err != nil {
		return "", err
	}
	made, err := os.MkdirTemp(h.dir, unfinishedRoot)
	if err != nil {
		return "", err
	}
	defer func() { retErr = errors.Join(retErr, os.RemoveAll(made)) }()
	for file, content := range files {
		path := filepath.Join(made, file)
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if strings.HasSuffix(file, "/") {
			err = errors.Join(err, os.MkdirAll(path, 0o755))
		} else {
			err = errors.Join(err, os.WriteFile(path, content, 0o644))
		}
		if err != nil {
			return "", err
		}
	}
	if err := os.Chmod(made, 0o755); err != nil {
		return "", err
	}
	err = os.Rename(made, h.path(name))
	if err == nil || h.intact(name, files) {
		return name, nil // made here, or by another call meanwhile
	}
	if !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	// A power failure left it in part. What still mounts it keeps what it has.
	if err := os.RemoveAll(h.path(name)); err != nil {
		return "", err
	}
	return name, os.Rename(made, h.path(name))
}

func contentName(files map[string][]byte) string {
	sum := sha256.New()
	for _, file := range slices.Sorted(maps.Keys(files)) {
		_, _ = fmt.Fprintf(sum, "%s\x00%d\x00", file, len(files[file])) // a hash takes everything
		_, _ = sum.Write(files[file])
	}
	return hex.EncodeToString(sum.Sum(nil)[:16])
}

func (h *hostRoots) intact(name string, files map[string][]byte) bool {
	for file, want := range files {
		if strings.HasSuffix(file, "/") {
			if info, err := os.Stat(filepath.Join(h.path(name), file)); err != nil || !info.IsDir() {
				return false
			}
			continue
		}
		got, err := readUpTo(filepath.Join(h.path(name), file), int64(len(want))+1)
		if err != nil || !bytes.Equal(got, want) {
			return false
		}
	}
	return true
}

func readUpTo(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit))
}

// prune removes the folders that no snapshot names.
func (s *Snapshotter) pruneHostRoots(ctx context.Context) error {
	s.hostRoots.use.Lock()
	defer s.hostRoots.use.Unlock()
	entries, err := os.ReadDir(s.hostRoots.dir)
	if err != nil || len(entries) == 0 {
		return ignoreNotExist(err)
	}
	named := map[string]bool{}
	err = s.meta.WithTransaction(ctx, false, func(ctx context.Context) error {
		return storage.WalkInfo(ctx, func(_ context.Context, info snapshots.Info) error {
			named[info.Labels[LabelHostRoot]] = true
			return nil
		})
	})
	if err != nil {
		return err
	}
	var faults []error
	for _, e := range entries {
		if !named[e.Name()] {
			faults = append(faults, os.RemoveAll(s.hostRoots.path(e.Name())))
		}
	}
	return errors.Join(faults...)
}

func ignoreNotExist(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
