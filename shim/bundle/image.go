package bundle

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"

	agentpb "github.com/coffer-project/coffer/proto/agent"
	"github.com/coffer-project/coffer/proto/volume"
)

const (
	driverGuestPull = "image_guest_pull"
	maxReference    = 1024
)

// rootfsVolume finds the volume document in the mounts that containerd wants as the container's root.
func rootfsVolume(rootfs []*types.Mount) (*volume.Volume, error) {
	var found *volume.Volume
	for _, m := range rootfs {
		v, ok, err := volume.FromOptions(m.GetOptions())
		if err != nil {
			return nil, fmt.Errorf("read root file system mount: %w", err)
		}
		if ok && found != nil {
			return nil, fmt.Errorf("root file system has more than one volume: %w", errdefs.ErrInvalidArgument)
		}
		if ok {
			found = v
		}
	}
	if len(rootfs) == 0 {
		return nil, fmt.Errorf("the container has a directory of this host as its root (ctr run --rootfs), which a virtual machine "+
			"does not see; run an image instead: %w", errdefs.ErrInvalidArgument)
	}
	if found == nil {
		return nil, fmt.Errorf("root file system comes from a snapshotter that unpacks images on this host; "+
			"set snapshotter = \"coffer\" for this runtime handler in containerd's configuration and pull the image again (with ctr: image pull --snapshotter coffer, without --local): %w",
			errdefs.ErrFailedPrecondition)
	}
	if found.VolumeType != volume.TypeImageGuestPull {
		return nil, fmt.Errorf("root file system is a volume of type %s, this runtime runs %s only: %w",
			found.VolumeType, volume.TypeImageGuestPull, errdefs.ErrNotImplemented)
	}
	return found, nil
}

// imageStorage makes the storage by which the guest pulls the image onto the container's root.
func (b *Bundle) imageStorage(
	rootfs []*types.Mount, image, mountPoint string, annotations map[string]string, d *dropped,
) (*agentpb.Storage, error) {
	v, err := rootfsVolume(rootfs)
	if err != nil {
		return nil, err
	}
	reference, err := imageReference(v, b.spec.Annotations, image)
	if err != nil {
		return nil, err
	}
	metadata := pick("volume.metadata", v.ImagePull.Metadata, metadataPrefixes, d)
	if !describes(v, reference) {
		for _, key := range []string{volume.MetadataImageRef, volume.MetadataManifestDigest, volume.MetadataLayerDigest} {
			delete(metadata, key)
		}
	}
	maps.Copy(metadata, annotations)
	document, err := json.Marshal(volume.ImagePull{Metadata: metadata})
	if err != nil {
		return nil, fmt.Errorf("encode image metadata: %w", err)
	}
	return &agentpb.Storage{
		Driver:        driverGuestPull,
		DriverOptions: []string{driverGuestPull + "=" + string(document)},
		Source:        reference,
		Fstype:        "overlay",
		MountPoint:    mountPoint,
	}, nil
}

// imageReference says which image the guest pulls: what CRI or containerd calls the container's image, else what the
// snapshotter says. The snapshotter comes last because snapshots are shared: when two images have the same layers, and
// the same image encrypted twice does, the snapshot remembers only the one that was pulled first.
func imageReference(v *volume.Volume, annotations map[string]string, image string) (string, error) {
	for _, candidate := range []string{
		annotations[annotationImage], annotations[annotationImageCRIO], image, v.Source, v.ImagePull.Metadata[volume.MetadataImageRef],
	} {
		if reference, ok := normalizeReference(candidate); ok {
			return reference, nil
		}
	}
	return "", fmt.Errorf("neither the snapshotter nor annotation %s names the image; "+
		"enable snapshot annotations in containerd's image configuration, or with ctr pass the annotation: %w",
		annotationImage, errdefs.ErrFailedPrecondition)
}

// describes tells whether what the snapshotter knows of its image holds for reference too.
func describes(v *volume.Volume, reference string) bool {
	known, ok := normalizeReference(v.ImagePull.Metadata[volume.MetadataImageRef])
	if !ok {
		known, ok = normalizeReference(v.Source)
	}
	return ok && known == reference
}

// normalizeReference writes out what users of container tools leave away, so that host, policy and guest speak of the
// same name. ok is false for what is no reference: nothing, the dummy, a bare image id, or text with strange characters.
func normalizeReference(ref string) (full string, ok bool) {
	if ref == "" || ref == volume.DummySource || len(ref) > maxReference || strings.HasPrefix(ref, "sha256:") {
		return "", false
	}
	for _, r := range ref {
		if r <= ' ' || r > '~' || strings.ContainsRune(`"'\<>|{}`, r) {
			return "", false
		}
	}
	host, rest, found := strings.Cut(ref, "/")
	if !found || !strings.ContainsAny(host, ".:") && host != "localhost" {
		host, rest = "docker.io", ref
	}
	if host == "index.docker.io" {
		host = "docker.io"
	}
	if host == "docker.io" && !strings.Contains(rest, "/") {
		rest = "library/" + rest
	}
	name := rest[strings.LastIndex(rest, "/")+1:]
	if name == "" {
		return "", false
	}
	if !strings.ContainsAny(name, ":@") {
		rest += ":latest"
	}
	return host + "/" + rest, true
}
