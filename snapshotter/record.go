package snapshotter

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
)

const (
	recordFile = "record.json"
	// maxRecord bounds a record file in bytes: labels are limited to 4 KiB each and there are few.
	maxRecord = 1 << 20
	// setAside begins the name of a directory that waits to be rebuilt, so that it cannot clash with a new number.
	setAside = "lost-"
	// unfinished begins the name of a directory that the overlay half was still making.
	unfinished = "new-"
)

// record is what the database says of an overlay snapshot, kept beside its directory for the day the database is lost.
type record struct {
	Name   string            `json:"name"`
	Parent string            `json:"parent,omitempty"`
	Kind   snapshots.Kind    `json:"kind"`
	Labels map[string]string `json:"labels,omitempty"`
}

func recordOf(info snapshots.Info) record {
	return record{Name: info.Name, Parent: info.Parent, Kind: info.Kind, Labels: info.Labels}
}

func (r record) equal(other record) bool {
	return r.Name == other.Name && r.Parent == other.Parent && r.Kind == other.Kind && maps.Equal(r.Labels, other.Labels)
}

// records reads and writes the record files below the directory of all overlay snapshots.
type records struct{ dir string }

// write replaces the record of a snapshot: a reader sees the old one or the new one.
func (r records) write(id string, rec record) (retErr error) {
	raw, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	dir := filepath.Join(r.dir, id)
	f, err := os.CreateTemp(dir, recordFile+".")
	if err != nil {
		return err
	}
	defer func() {
		if retErr != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(raw)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), filepath.Join(dir, recordFile))
}

func (r records) read(dir string) (record, error) {
	var rec record
	f, err := os.Open(filepath.Join(r.dir, dir, recordFile))
	if err != nil {
		return rec, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxRecord))
	if err != nil {
		return rec, err
	}
	if err := json.Unmarshal(raw, &rec); err != nil {
		return rec, fmt.Errorf("decode %s: %w", f.Name(), err)
	}
	if rec.Name == "" {
		return rec, fmt.Errorf("decode %s: no name", f.Name())
	}
	return rec, nil
}

// lost renames every snapshot directory out of the way of new numbers and returns the records by directory, and the
// directories that have none. It may be interrupted and called again.
func (r records) lost(ctx context.Context) (found map[string]record, without []string, err error) {
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return nil, nil, err
	}
	found = map[string]record{}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		dir := e.Name()
		if strings.HasPrefix(dir, unfinished) {
			continue
		}
		if !strings.HasPrefix(dir, setAside) {
			if err := os.Rename(filepath.Join(r.dir, dir), filepath.Join(r.dir, setAside+dir)); err != nil {
				return nil, nil, err
			}
			dir = setAside + dir
		}
		rec, err := r.read(dir)
		if err != nil {
			without = append(without, dir)
			continue
		}
		found[dir] = rec
	}
	return found, without, nil
}
