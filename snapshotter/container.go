package snapshotter

import (
	"context"
	"fmt"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

// containerKey is the name under which containerd's own records have a container's snapshot with us: namespace, number,
// and the container's id.
var containerKey = regexp.MustCompile(`^[^/]+/[0-9]+/([A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*)$`)

// hostRuntimes begin the names of runtimes that run containers on this host's kernel.
var hostRuntimes = []string{"io.containerd.runc.", "io.containerd.runsc.", "io.containerd.wasm"}

// imageOfContainer says which image a container runs, by name and manifest, once containerd has recorded the container:
// when it asks for mounts to start it. Snapshots alone cannot tell, since images share them. nil means that nothing more
// than the snapshots is known. It fails with errdefs.ErrFailedPrecondition for a container that would run on this host,
// where there is nothing of the image.
func (s *Snapshotter) imageOfContainer(ctx context.Context, key string, below layerName) (*layerName, error) {
	match := containerKey.FindStringSubmatch(key)
	if s.images == nil || match == nil {
		return nil, nil
	}
	container, err := s.images.Container(ctx, match[1])
	if errdefs.IsNotFound(err) {
		return nil, nil // it is being created, or the snapshot is no container's
	}
	if err != nil {
		log.G(ctx).WithError(err).WithField("container", match[1]).Warn("image of a container is not known for certain")
		return nil, nil
	}
	for _, runtime := range hostRuntimes {
		if strings.HasPrefix(container.Runtime, runtime) {
			return nil, fmt.Errorf("image %s is left to guests by this snapshotter, but runtime %s runs containers on the host: "+
				"run it by Coffer's handler (runtimeClassName), or give that runtime another snapshotter in containerd's configuration: %w",
				named(container.Image), container.Runtime, errdefs.ErrFailedPrecondition)
		}
	}
	if container.Image == "" || len(container.Image) > maxReference {
		return nil, nil
	}
	record, err := s.images.Named(ctx, container.Image)
	if err != nil {
		log.G(ctx).WithError(err).WithField("image", container.Image).Debug("digest of a container's image is not known")
		return nil, nil
	}
	image, err := s.images.Manifest(ctx, record.Target)
	if err != nil {
		log.G(ctx).WithError(err).WithField("image", container.Image).Debug("digest of a container's image is not known")
		return nil, nil
	}
	// The name may mean another image by now.
	if image.Top() != below.Chain {
		return nil, nil
	}
	found := layerName{Chain: below.Chain, Reference: container.Image, Manifest: image.Manifest, Top: true}
	if n := len(image.Layers); n > 0 {
		found.Layer = image.Layers[n-1].Digest
	}
	return &found, nil
}
