package bundle

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	agentpb "github.com/coffer-project/coffer/proto/agent"
	"github.com/coffer-project/coffer/proto/hostroot"
	"github.com/coffer-project/coffer/proto/lazyregexp"
	"github.com/coffer-project/coffer/proto/volume"
)

// CRI tells a runtime nothing of volumes that come from images but paths of the host.
var (
	// imageVolumePath is where containerd mounts the snapshot of an image that a pod mounts as a volume, and the part of
	// it that the container gets. The pod and the digest of the image's manifest or index are in the path.
	imageVolumePath = lazyregexp.New(`^(/.*/image-volumes/[^/]+/[0-9a-f]{64})(/.*)?$`)
	// declaredVolumePath is the folder that containerd makes for a volume that the container's own image declares: the
	// container, then a number.
	declaredVolumePath = lazyregexp.New(`/containers/([^/]+)/volumes/[0-9a-f]{64}$`)
)

// maxImageVolumes is what our guest takes.
const maxImageVolumes = 16

// addFromImage plans a mount whose content is that of an image, and tells where the guest will have it. ok is false for
// every other mount.
func (p *planner) addFromImage(out *mountPlan, m specs.Mount) (source string, ok bool, err error) {
	if found := declaredVolumePath.FindStringSubmatch(m.Source); found != nil && found[1] == p.containerID {
		// The guest has the image's content there already, and a place for what is written over it. A mount of the root's
		// own folder is writable also where the root is not, and goes with the container like containerd's folder.
		return path.Join(p.rootfs(), m.Destination), true, nil
	}
	found := imageVolumePath.FindStringSubmatch(m.Source)
	if found == nil {
		return "", false, nil
	}
	raw, err := p.host.hostRoot(found[1], hostroot.VolumeFile)
	if errors.Is(err, fs.ErrNotExist) {
		return "", false, nil // a snapshotter that unpacks images on the host
	}
	if err != nil {
		return "", false, fmt.Errorf("read which image the volume is: %w", err)
	}
	mountPoint, err := p.volumeStorage(out, string(raw))
	if err != nil {
		return "", false, err
	}
	return path.Join(mountPoint, path.Clean("/"+found[2])), true, nil
}

func (p *planner) rootfs() string { return guestRun + "/" + p.containerID + "/rootfs" }

// volumeStorage adds the storage by which the guest pulls the image of a volume, unless the container has it already.
func (p *planner) volumeStorage(out *mountPlan, option string) (string, error) {
	v, err := volume.Parse(option)
	if err != nil {
		return "", fmt.Errorf("read which image the volume is: %w", err)
	}
	if v.VolumeType != volume.TypeImageGuestPull {
		return "", fmt.Errorf("image volume of type %s, this runtime has %s only: %w", v.VolumeType, volume.TypeImageGuestPull, errdefs.ErrNotImplemented)
	}
	reference, ok := normalizeReference(v.Source)
	if !ok {
		return "", fmt.Errorf("the snapshotter could not ask containerd which image the volume is (containerd_address in its configuration); "+
			"correct that and start the pod again: %w", errdefs.ErrFailedPrecondition)
	}
	document, err := json.Marshal(volume.ImagePull{Metadata: pick("volume.metadata", v.ImagePull.Metadata, metadataPrefixes, p.dropped)})
	if err != nil {
		return "", fmt.Errorf("encode image metadata: %w", err)
	}
	options := []string{driverGuestPull + "=" + string(document)}
	count := 0
	for _, s := range out.storages {
		if s.GetDriver() != driverGuestPull {
			continue
		}
		if s.GetSource() == reference && slices.Equal(s.GetDriverOptions(), options) {
			return s.GetMountPoint(), nil
		}
		count++
	}
	if count == maxImageVolumes {
		return "", fmt.Errorf("more than %d images are mounted as volumes: %w", maxImageVolumes, errdefs.ErrInvalidArgument)
	}
	mountPoint := fmt.Sprintf("%s/%s/images/%d", guestRun, p.containerID, count)
	out.storages = append(out.storages, &agentpb.Storage{
		Driver: driverGuestPull, DriverOptions: options, Source: reference, Fstype: "overlay", Options: []string{"ro"}, MountPoint: mountPoint,
	})
	return mountPoint, nil
}

// hostRoot reads a file of the folder that stands for an image's root on this host.
func (realHost) hostRoot(dir, file string) ([]byte, error) { return readHostRoot(dir, file) }
