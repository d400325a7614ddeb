package snapshotter

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

// recover makes the record of a reference-only layer again when containerd names one that the database does not know.
// Anything else that is unknown stays unknown; the call that needs it reports it.
//
// The parent is not in the name. Nothing asks for it: containerd keeps its own parents, and a container's image is the
// topmost layer alone.
func (s *Snapshotter) recover(ctx context.Context, key string) error {
	name, ours := parseName(key)
	if !ours {
		return nil
	}
	known := false
	err := s.meta.WithTransaction(ctx, false, func(ctx context.Context) error {
		_, _, _, err := storage.GetInfo(ctx, key)
		known = err == nil
		return ignoreNotFound(err)
	})
	if err != nil || known {
		return err
	}
	err = s.meta.WithTransaction(ctx, true, func(ctx context.Context) error {
		if _, _, _, err := storage.GetInfo(ctx, key); err == nil || !errdefs.IsNotFound(err) {
			return err
		}
		labels := withMode(name.labels(), ModeReference)
		labels[LabelRecovered] = "true"
		return putLayer(ctx, "recover "+key, key, "", labels)
	})
	if err != nil {
		return fmt.Errorf("recover layer %s: %w", name.Chain, err)
	}
	log.G(ctx).WithField("image", name.Reference).WithField("digest", name.Chain.String()).
		Warn("recovered a layer that the database did not know")
	return nil
}

func ignoreNotFound(err error) error {
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}
