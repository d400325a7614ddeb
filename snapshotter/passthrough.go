package snapshotter

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/log"
)

// createOverlay hands a snapshot to the overlay half and notes it beside its directory.
func (s *Snapshotter) createOverlay(ctx context.Context, kind snapshots.Kind, key, parent string, labels map[string]string) (_ []mount.Mount, retErr error) {
	create := s.overlay.Prepare
	if kind == snapshots.KindView {
		create = s.overlay.View
	}
	mounts, err := create(ctx, key, parent, snapshots.WithLabels(labels))
	if err != nil {
		return nil, err
	}
	if err := s.note(ctx, key); err != nil {
		return nil, errors.Join(fmt.Errorf("note snapshot %s: %w", key, err), s.overlay.Remove(ctx, key))
	}
	return mounts, nil
}

func (s *Snapshotter) commitOverlay(ctx context.Context, name, key string, set snapshots.Opt) error {
	if err := s.overlay.Commit(ctx, name, key, set); err != nil {
		return err
	}
	if err := s.note(ctx, name); err != nil {
		// The commit stands, and it is what containerd asked for. The note matters only if the database is lost too.
		log.G(ctx).WithError(err).WithField("snapshot", name).Warn("snapshot would not survive a lost database")
	}
	return nil
}

// note writes the record file of an overlay snapshot from the database.
func (s *Snapshotter) note(ctx context.Context, key string) error {
	var (
		id   string
		info snapshots.Info
	)
	err := s.meta.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		id, info, _, err = storage.GetInfo(ctx, key)
		return err
	})
	if err != nil {
		return err
	}
	return s.records.write(id, recordOf(info))
}

// noteAll brings all record files up to date: a kill may have come between a commit and its note.
func (s *Snapshotter) noteAll(ctx context.Context) error {
	return s.meta.WithTransaction(ctx, false, func(ctx context.Context) error {
		return storage.WalkInfo(ctx, func(ctx context.Context, info snapshots.Info) error {
			if modeOf(info) != ModeOverlay {
				return nil
			}
			id, _, _, err := storage.GetInfo(ctx, info.Name)
			if err != nil {
				return err
			}
			if rec, err := s.records.read(id); err == nil && rec.equal(recordOf(info)) {
				return nil
			}
			if err := s.records.write(id, recordOf(info)); err != nil {
				return fmt.Errorf("note snapshot %s: %w", info.Name, err)
			}
			return nil
		})
	})
}
