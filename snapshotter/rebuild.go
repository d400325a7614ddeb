package snapshotter

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

// initialize fills a new database: with nothing on a new node, with the overlay snapshots whose records are found where
// the database was lost. A database that has been initialized once is left alone.
//
// All of it is one transaction. If it does not commit, the directories keep their records whatever they are called by
// then, and the next start begins anew.
func (s *Snapshotter) initialize(ctx context.Context) error {
	err := s.meta.WithTransaction(ctx, true, func(ctx context.Context) error {
		if _, err := storage.IDMap(ctx); err == nil || !errdefs.IsNotFound(err) {
			return err
		}
		// The tables appear with the first record, and without tables a walk over nothing is an error.
		const first = "initialize"
		if _, err := storage.CreateSnapshot(ctx, snapshots.KindActive, first, ""); err != nil {
			return err
		}
		if _, _, err := storage.Remove(ctx, first); err != nil {
			return err
		}
		return s.rebuild(ctx)
	})
	if err != nil {
		return fmt.Errorf("initialize snapshot database: %w", err)
	}
	return nil
}

func (s *Snapshotter) rebuild(ctx context.Context) error {
	found, without, err := s.records.lost(ctx)
	if err != nil {
		return err
	}
	for _, dir := range without {
		log.G(ctx).WithField("path", filepath.Join(s.records.dir, dir)).Warn("directory has no record and cannot be rebuilt")
	}
	for _, dir := range parentsFirst(found) {
		if err := s.rebuildOne(ctx, dir, found[dir]); err != nil {
			return fmt.Errorf("rebuild snapshot %s from %s: %w", found[dir].Name, dir, err)
		}
	}
	if len(found) > 0 {
		log.G(ctx).WithField("snapshots", len(found)).Warn("database was lost, rebuilt overlay snapshots from their records")
	}
	return nil
}

func (s *Snapshotter) rebuildOne(ctx context.Context, dir string, rec record) error {
	kind, key := rec.Kind, rec.Name
	if kind == snapshots.KindCommitted {
		kind, key = snapshots.KindActive, "rebuild "+rec.Name
	}
	set := func(info *snapshots.Info) error {
		info.Labels = withMode(rec.Labels, ModeOverlay)
		return nil
	}
	made, err := storage.CreateSnapshot(ctx, kind, key, rec.Parent, set)
	if errdefs.IsNotFound(err) || errdefs.IsAlreadyExists(err) || errdefs.IsInvalidArgument(err) {
		// Its parent has no record, or a kill left the directory of a snapshot that was replaced: not to be rebuilt,
		// and no reason to stay down.
		log.G(ctx).WithError(err).WithField("snapshot", rec.Name).Warn("snapshot cannot be rebuilt")
		return nil
	}
	if err != nil {
		return err
	}
	if rec.Kind == snapshots.KindCommitted {
		usage, err := fs.DiskUsage(ctx, filepath.Join(s.records.dir, dir, "fs"))
		if err != nil {
			return err
		}
		if _, err := storage.CommitActive(ctx, key, rec.Name, snapshots.Usage(usage), set); err != nil {
			return err
		}
	}
	return os.Rename(filepath.Join(s.records.dir, dir), filepath.Join(s.records.dir, made.ID))
}

// parentsFirst orders directories so that a snapshot comes after its parent. Records in a circle, which nobody writes,
// come in some order and then lack a parent.
func parentsFirst(found map[string]record) []string {
	dirOf := map[string]string{}
	for dir, rec := range found {
		dirOf[rec.Name] = dir
	}
	var (
		order []string
		seen  = map[string]bool{}
		visit func(dir string)
	)
	visit = func(dir string) {
		if seen[dir] {
			return
		}
		seen[dir] = true
		if parent, ok := dirOf[found[dir].Parent]; ok && found[dir].Parent != "" {
			visit(parent)
		}
		order = append(order, dir)
	}
	for _, dir := range slices.Sorted(maps.Keys(found)) {
		visit(dir)
	}
	return order
}
