package snapshotter

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/coffer-project/coffer/proto/volume"
)

// commitLayer commits an empty layer and returns errdefs.ErrAlreadyExists when it is there, made now or before.
//
// key never becomes visible: record and commit are one transaction, so a kill leaves the layer whole or absent.
func (s *Snapshotter) commitLayer(ctx context.Context, key, parent string, labels map[string]string) error {
	name, err := nameOf(labels)
	if err != nil {
		return fmt.Errorf("prepare snapshot %s: %w", key, err)
	}
	made := false
	err = s.meta.WithTransaction(ctx, true, func(ctx context.Context) error {
		made = false
		there, err := layerExists(ctx, labels[snapshots.LabelSnapshotRef], parent)
		if err != nil || there {
			return err
		}
		if _, _, _, err := storage.GetInfo(ctx, name.String()); err == nil {
			// The same facts on another parent: a chain that was recovered, or one of another containerd namespace.
			name.Twin = key
		}
		made = true
		return putLayer(ctx, key, name.String(), parent, labels)
	})
	if err != nil {
		return fmt.Errorf("commit layer %s: %w", name.Chain, err)
	}
	if made {
		log.G(ctx).WithField("image", name.Reference).WithField("digest", name.Chain.String()).Debug("layer left to the guest")
	}
	return fmt.Errorf("layer %s is left to the guest: %w", name.Chain, errdefs.ErrAlreadyExists)
}

// putLayer makes a committed record. key must be free; it is used for the moment between the two calls only.
func putLayer(ctx context.Context, key, name, parent string, labels map[string]string) error {
	set := func(info *snapshots.Info) error {
		info.Labels = labels
		return nil
	}
	if _, err := storage.CreateSnapshot(ctx, snapshots.KindActive, key, parent, set); err != nil {
		return err
	}
	_, err := storage.CommitActive(ctx, key, name, snapshots.Usage{}, set)
	return err
}

// layerExists reports whether containerd would find the layer: its rule is the ref label and the parent.
func layerExists(ctx context.Context, target, parent string) (bool, error) {
	errFound := errors.New("found")
	err := storage.WalkInfo(ctx, func(_ context.Context, info snapshots.Info) error {
		if info.Kind == snapshots.KindCommitted && info.Parent == parent &&
			info.Labels[snapshots.LabelSnapshotRef] == target && modeOf(info) == ModeReference {
			return errFound
		}
		return nil
	})
	if errors.Is(err, errFound) {
		return true, nil
	}
	return false, err
}

// createReference makes a container's snapshot on a reference-only parent.
func (s *Snapshotter) createReference(ctx context.Context, kind snapshots.Kind, key, parent string, labels map[string]string) (mounts []mount.Mount, err error) {
	files, err := s.standIn(ctx, key, parent)
	if err != nil {
		return nil, err
	}
	s.hostRoots.use.RLock()
	defer s.hostRoots.use.RUnlock()
	if len(files) > 0 {
		if labels[LabelHostRoot], err = s.hostRoots.ensure(files); err != nil {
			return nil, fmt.Errorf("make the folder that stands for the root of snapshot %s: %w", key, err)
		}
	}
	err = s.meta.WithTransaction(ctx, true, func(ctx context.Context) error {
		if _, err := storage.CreateSnapshot(ctx, kind, key, parent, snapshots.WithLabels(labels)); err != nil {
			return fmt.Errorf("create snapshot %s: %w", key, err)
		}
		mounts, err = s.referenceMounts(ctx, key, nil)
		return err
	})
	return mounts, err
}

// referenceMounts gives the mount of an active or viewed snapshot. It needs a transaction. image is what is known of the
// image besides the snapshots, and may be nil.
func (s *Snapshotter) referenceMounts(ctx context.Context, key string, image *layerName) ([]mount.Mount, error) {
	// This refuses committed snapshots, which have no mounts.
	if _, err := storage.GetSnapshot(ctx, key); err != nil {
		return nil, fmt.Errorf("mounts of snapshot %s: %w", key, err)
	}
	_, info, _, err := storage.GetInfo(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("mounts of snapshot %s: %w", key, err)
	}
	name, err := imageBelow(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("find the image of snapshot %s: %w", key, err)
	}
	if image != nil {
		name = *image
	}
	option, err := s.volume(name).Option()
	if err != nil {
		return nil, fmt.Errorf("describe the image of snapshot %s: %w", key, err)
	}
	return []mount.Mount{{Type: "bind", Source: s.hostPath(ctx, info), Options: []string{"rbind", "ro", option}}}, nil
}

// imageBelow walks down from a snapshot to the first image layer. Snapshots between are commits of containers, which
// stem from the image below them. It goes no further: what lies below an image layer belongs to some other image.
func imageBelow(ctx context.Context, key string) (layerName, error) {
	for key != "" {
		_, info, _, err := storage.GetInfo(ctx, key)
		if err != nil {
			return layerName{}, err
		}
		if name, ok := parseName(key); ok && modeOf(info) == ModeReference && info.Kind == snapshots.KindCommitted {
			return name, nil
		}
		key = info.Parent
	}
	return layerName{}, nil
}

// volume tells the shim what to have pulled. Where the layer does not know for certain which image a container on it
// runs, the shim's other source, CRI's annotation, is all there is.
func (s *Snapshotter) volume(name layerName) *volume.Volume {
	v := &volume.Volume{
		VolumeType: volume.TypeImageGuestPull,
		Source:     volume.DummySource,
		ImagePull: &volume.ImagePull{Metadata: map[string]string{
			volume.MetadataProxyMode: "true",
			volume.MetadataPlatform:  s.platform,
		}},
	}
	known := map[string]string{volume.MetadataLayerDigest: name.Layer.String()}
	if name.Top {
		v.Source = name.Reference
		known[volume.MetadataImageRef] = name.Reference
		known[volume.MetadataManifestDigest] = name.Manifest.String()
	}
	for k, value := range known {
		if value != "" {
			v.ImagePull.Metadata[k] = value
		}
	}
	return v
}
