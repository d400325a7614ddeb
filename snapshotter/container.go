package snapshotter

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"

	"github.com/coffer-project/coffer/snapshotter/images"
)

// containerKey is the name under which containerd's own records have a container's snapshot with us: namespace, number,
// and the container's id.
var containerKey = regexp.MustCompile(`^[^/]+/[0-9]+/([A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*)$`)

// hostRuntimes begin the names of runtimes that run containers on this host's kernel, guestRuntimes those of runtimes whose
// guests pull the images of their containers.
var (
	hostRuntimes  = []string{"io.containerd.runc.", "io.containerd.runsc.", "io.containerd.wasm"}
	guestRuntimes = []string{"io.containerd.coffer.", "io.containerd.kata"}
)

// container is what containerd has recorded of a container.
type container struct{ images.Container }

// runsIn tells whether the container's runtime is among some.
func (c container) runsIn(runtimes []string) bool {
	return slices.ContainsFunc(runtimes, func(prefix string) bool { return strings.HasPrefix(c.Runtime, prefix) })
}

// refuse is the error for a container that would run on this host, where there is nothing of the image.
func (c container) refuse() error {
	return fmt.Errorf("image %s is left to guests by this snapshotter, but runtime %s runs containers on the host: "+
		"run it by Coffer's handler (runtimeClassName), or give that runtime another snapshotter in containerd's configuration: %w",
		named(c.Image), c.Runtime, errdefs.ErrFailedPrecondition)
}

// containerOf finds the container of a snapshot, which containerd has recorded when it asks for mounts to start it. nil: it
// is not known, or there is none yet.
func (s *Snapshotter) containerOf(ctx context.Context, key string) *container {
	match := containerKey.FindStringSubmatch(key)
	if s.images == nil || match == nil {
		return nil
	}
	found, err := s.images.Container(ctx, match[1])
	if errdefs.IsNotFound(err) {
		return nil // it is being created, or the snapshot is no container's
	}
	if err != nil {
		log.G(ctx).WithError(err).WithField("container", match[1]).Warn("image of a container is not known for certain")
		return nil
	}
	return &container{found}
}

// imageOf says which image a container runs, by name and manifest. Snapshots alone cannot tell, since images share them.
// chain is the top of its layers. nil means that nothing more than the snapshots is known.
func (s *Snapshotter) imageOf(ctx context.Context, c *container, chain digest.Digest) *layerName {
	if c == nil || c.Image == "" || len(c.Image) > maxReference {
		return nil
	}
	record, err := s.images.Named(ctx, c.Image)
	if err != nil {
		log.G(ctx).WithError(err).WithField("image", c.Image).Debug("digest of a container's image is not known")
		return nil
	}
	image, err := s.images.Manifest(ctx, record.Target)
	if err != nil {
		log.G(ctx).WithError(err).WithField("image", c.Image).Debug("digest of a container's image is not known")
		return nil
	}
	// The name may mean another image by now.
	if image.Top() != chain {
		return nil
	}
	found := layerName{Chain: chain, Reference: c.Image, Manifest: image.Manifest, Top: true}
	if n := len(image.Layers); n > 0 {
		found.Layer = image.Layers[n-1].Digest
	}
	return &found
}

// chainBelow is the topmost image layer below a snapshot on references; empty where there is none.
func (s *Snapshotter) chainBelow(ctx context.Context, key string) (chain digest.Digest, err error) {
	err = s.meta.WithTransaction(ctx, false, func(ctx context.Context) error {
		name, err := imageBelow(ctx, key)
		chain = name.Chain
		return err
	})
	if err != nil {
		return "", fmt.Errorf("find the image of snapshot %s: %w", key, err)
	}
	return chain, nil
}

// unpackedBelow is the image layer that a container's snapshot directly lies on, where containerd has named it as it names
// what it unpacks: by the chain, behind namespace and number. Empty where it has not.
func unpackedBelow(info snapshots.Info) digest.Digest {
	chain, err := digest.Parse(info.Parent[strings.LastIndex(info.Parent, "/")+1:])
	if err != nil {
		return ""
	}
	return chain
}
