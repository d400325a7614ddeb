package snapshotter

import (
	"context"
	"path"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/coffer-project/coffer/snapshotter/images"
)

// maxPauseImage bounds what is taken for a pause image: all its layers as the registry has them, in bytes. Kubernetes' own
// has a third of a MiB.
const maxPauseImage = 2 << 20

// WithPauseImages has pause images unpacked on this host. It needs WithImages.
//
// containerd pulls the image of pod sandboxes once per node, by the snapshotter of whichever pod comes first, and never
// again. If that pod was one for a guest, and the image a reference, runc's pods could not be made from it. No secret can be
// in it: see isPauseImage.
func WithPauseImages() Opt { return func(o *options) { o.unpackPause = true } }

// isPauseImage tells whether an image is nothing but a program called pause, whatever the image's name is: in clear, not
// marked for guests, and small.
func isPauseImage(image *images.Image) bool {
	command := image.Config.Entrypoint
	if len(command) != 1 || path.Base(command[0]) != "pause" || len(image.Config.Cmd) > 0 || guestOnly(image) != "" {
		return false
	}
	var size int64
	for _, layer := range image.Layers {
		if layer.Size < 0 || layer.Size > maxPauseImage {
			return false
		}
		size += layer.Size
	}
	return size <= maxPauseImage
}

// ofPauseImage tells whether a layer that is prepared by these labels is to be fetched for being a pause image's. Where
// containerd names no image, one with the layer is looked for that has no name yet: it is being pulled. One that has been
// pulled is unpacked anew, here as a reference, and its layers are where they were before.
func (s *Snapshotter) ofPauseImage(ctx context.Context, labels map[string]string) bool {
	layer, err := nameOf(labels)
	if err != nil || !s.unpackPause {
		return false
	}
	if layer.Manifest != "" {
		image, err := s.images.Manifest(ctx, layer.Manifest)
		if err != nil {
			warnUnlessNotFound(ctx, err, layer)
			return false
		}
		return isPauseImage(image)
	}
	found, err := s.images.Containing(ctx, layer.Chain)
	if err != nil {
		warnUnlessNotFound(ctx, err, layer)
		return false
	}
	for _, image := range found {
		if !isPauseImage(image) {
			continue
		}
		if names, err := s.images.Names(ctx, image.Manifest); err == nil && len(names) == 0 {
			return true
		}
	}
	return false
}

func warnUnlessNotFound(ctx context.Context, err error, layer layerName) {
	if !errdefs.IsNotFound(err) {
		log.G(ctx).WithError(err).WithField("image", layer.Reference).
			Warn("image is not known, so it is left to guests: if it is the pause image of runc's pods, pull it again (crictl pull)")
	}
}
