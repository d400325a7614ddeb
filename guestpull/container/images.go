package container

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coffer-project/coffer/guestpull/container/mount"
	"github.com/coffer-project/coffer/guestpull/container/rootfs"
	"github.com/coffer-project/coffer/guestpull/container/spec"
	"github.com/coffer-project/coffer/guestpull/image"
	agentpb "github.com/coffer-project/coffer/proto/agent"
)

// maxVolumes bounds the images that one container mounts beside its root.
const maxVolumes = 16

// imageVolume is an image that a container mounts, read-only, beside its root.
type imageVolume struct {
	request    image.Request
	mountPoint string
	pulled     *image.Image // once it is there
}

// owner is whose the files of the container's images are.
func (p *plan) owner() rootfs.Owner {
	return rootfs.Owner{Namespace: p.userNS, UID: p.users.UID.HostID, GID: p.users.GID.HostID}
}

// imagesDir is where the images of a container are mounted, out of reach of the host's copies.
func (m *Manager) imagesDir(id string) string { return filepath.Join(m.Base, id, "images") }

// planPulls sorts the images. Just one must be mounted as the root: without one the root would be the host's choice, and with two it
// would be unclear which one was checked. All others are volumes, each at a place of its own.
func (m *Manager) planPulls(p *plan, pulls []*agentpb.Storage) (map[string]string, error) {
	var metadata map[string]string
	roots := 0
	for _, s := range pulls {
		req, values, err := pullRequest(p.id, s)
		if err != nil {
			return nil, err
		}
		if s.GetMountPoint() == m.rootfs(p.id) {
			if len(s.GetOptions()) > 0 {
				return nil, fmt.Errorf("container %s: image storage must be mounted plainly at %s: %w", p.id, m.rootfs(p.id), errdefs.ErrInvalidArgument)
			}
			roots++
			p.image, metadata = req, values
			continue
		}
		if err := m.planVolume(p, s, req); err != nil {
			return nil, err
		}
	}
	if roots != 1 {
		return nil, fmt.Errorf("container %s: %d images to pull as its root, exactly one is needed: %w", p.id, roots, errdefs.ErrInvalidArgument)
	}
	return metadata, nil
}

func (m *Manager) planVolume(p *plan, s *agentpb.Storage, req image.Request) error {
	name, below := strings.CutPrefix(s.GetMountPoint(), m.imagesDir(p.id)+"/")
	number, err := strconv.Atoi(name)
	if !below || err != nil || number < 0 || number >= maxVolumes || strconv.Itoa(number) != name {
		return fmt.Errorf("container %s: image storage at %.200q: %w", p.id, s.GetMountPoint(), errdefs.ErrInvalidArgument)
	}
	if req.Reference == "" || !slices.Equal(s.GetOptions(), []string{"ro"}) {
		return fmt.Errorf("container %s: image storage at %s needs a reference and the option ro: %w", p.id, s.GetMountPoint(), errdefs.ErrInvalidArgument)
	}
	for _, other := range p.volumes {
		if other.mountPoint == s.GetMountPoint() {
			return fmt.Errorf("container %s: two images at %s: %w", p.id, s.GetMountPoint(), errdefs.ErrInvalidArgument)
		}
	}
	p.volumes = append(p.volumes, imageVolume{request: req, mountPoint: s.GetMountPoint()})
	return nil
}

// pullRequest reads which image a storage is about.
func pullRequest(id string, s *agentpb.Storage) (image.Request, map[string]string, error) {
	var none image.Request
	if s.GetFsGroup() != nil || s.GetShared() {
		return none, nil, fmt.Errorf("container %s: image storage must be mounted plainly: %w", id, errdefs.ErrInvalidArgument)
	}
	if len(s.GetSource()) > maxReference {
		return none, nil, fmt.Errorf("container %s: image reference of %d bytes: %w", id, len(s.GetSource()), errdefs.ErrInvalidArgument)
	}
	metadata, err := pullMetadata(s.GetDriverOptions())
	if err != nil {
		return none, nil, fmt.Errorf("container %s: %w", id, err)
	}
	req := image.Request{ContainerID: id, Reference: s.GetSource(), Digest: metadata[keyManifestDigest], Platform: metadata[keyPlatform]}
	if req.Digest != "" {
		if err := digest.Digest(req.Digest).Validate(); err != nil {
			return none, nil, fmt.Errorf("container %s: manifest digest %.80q: %w", id, req.Digest, errdefs.ErrInvalidArgument)
		}
	}
	return req, metadata, nil
}

// ownImage returns the image that a mount's source lies in: the root of the image, and the path in it. ok is false for all others.
func (m *Manager) ownImage(p *plan, source string) (root, rel string, ok bool) {
	roots := []string{m.rootfs(p.id)}
	for _, v := range p.volumes {
		roots = append(roots, v.mountPoint)
	}
	for _, root := range roots {
		if source == root || mount.Below(root, source) {
			return root, strings.TrimPrefix(strings.TrimPrefix(source, root), "/"), true
		}
	}
	return "", "", false
}

// checkOwnImages holds mounts of images to what they are for. The root's own folder may be mounted over itself alone, so that it is
// writable where the root is not: anywhere else it would show a program other files than it expects. A volume is read-only.
func (m *Manager) checkOwnImages(p *plan) error {
	for _, mnt := range p.spec.Mounts {
		if mnt.Type != spec.Bind {
			continue
		}
		root, rel, ok := m.ownImage(p, mnt.Source)
		switch {
		case !ok:
		case root == m.rootfs(p.id) && "/"+rel != mnt.Destination:
			return fmt.Errorf("container %s: mount at %s: only the image's own folder can be mounted there: %w", p.id, mnt.Destination, errdefs.ErrInvalidArgument)
		case root != m.rootfs(p.id) && (!slices.Contains(mnt.Options, "ro") || slices.Contains(mnt.Options, "rw")):
			return fmt.Errorf("container %s: mount at %s: an image that is mounted as a volume is read-only: %w", p.id, mnt.Destination, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// mountVolumes pulls the images of volumes and stacks their layers. Images.Release, which the root's pull has arranged, gives all
// of the container back.
func (m *Manager) mountVolumes(ctx context.Context, c *Container, p *plan) error {
	if len(p.volumes) == 0 {
		return nil
	}
	if err := os.Mkdir(m.imagesDir(c.id), 0o711); err != nil {
		return fmt.Errorf("make folder of container %s: %w", c.id, err)
	}
	for i := range p.volumes {
		v := &p.volumes[i]
		img, err := m.Images.Pull(ctx, v.request)
		if err != nil {
			return fmt.Errorf("container %s: image volume: %w", c.id, err)
		}
		v.pulled = img
		c.undo.push(func(context.Context) error { return mount.Unmount(v.mountPoint) })
		if err := rootfs.ReadOnly(img.Layers, v.mountPoint+".scratch", v.mountPoint, p.owner()); err != nil {
			return fmt.Errorf("container %s: image volume %s: %w", c.id, v.request.Reference, err)
		}
	}
	return nil
}

// pin opens the source of a bind mount, of an image or of the host's files, once and puts the opened object at target.
func (m *Manager) pin(p *plan, mnt *specs.Mount, target string) error {
	if root, rel, ok := m.ownImage(p, mnt.Source); ok {
		// A folder that an image declares as a volume need not be in it; a part of a volume must.
		var missing *mount.Owner
		if root == m.rootfs(p.id) {
			missing = &mount.Owner{UID: int(p.owner().UID), GID: int(p.owner().GID)}
		}
		return mount.PinInRoot(root, rel, target, missing)
	}
	return mount.Pin(m.sharedDir(), mnt.Source, target)
}
