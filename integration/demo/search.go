package main

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// countHits searches every regular file below the given paths for marker and returns in how many it occurs.
// Files that vanish meanwhile are skipped: daemons clean up behind themselves.
func countHits(marker []byte, paths ...string) (hits int, files []string, err error) {
	for _, root := range paths {
		err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			if !entry.Type().IsRegular() {
				return nil
			}
			found, err := contains(path, marker)
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if found {
				hits++
				files = append(files, path)
			}
			return err
		})
		if err != nil {
			return 0, nil, err
		}
	}
	return hits, files, nil
}

// contains reads the file in blocks that overlap by the marker's length, so that no occurrence can hide on a boundary.
func contains(path string, marker []byte) (bool, error) {
	file, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer file.Close()
	var where unix.Statfs_t
	if err := unix.Fstatfs(int(file.Fd()), &where); err != nil {
		return false, err
	}
	if where.Type == unix.NSFS_MAGIC {
		return false, nil // a mounted namespace looks like a file and has no content
	}
	const block = 1 << 20
	buf := make([]byte, block+len(marker))
	kept := 0
	for {
		n, err := io.ReadFull(file, buf[kept:])
		if bytes.Contains(buf[:kept+n], marker) {
			return true, nil
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		total := kept + n
		kept = copy(buf, buf[total-len(marker)+1:total])
	}
}
