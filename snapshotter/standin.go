package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-project/coffer/proto/hostroot"
)

// imageVolumeKey is the key by which CRI prepares the snapshot of an image that a pod mounts as a volume: the folder
// that it will be mounted on, which ends in the digest of the image's manifest or index.
var imageVolumeKey = regexp.MustCompile(`/image-volumes/[^/]+/([0-9a-f]{64})$`)

// LabelVolumePaths is a label by which an image lists the folders in it that may be mounted as parts of a volume
// (subPath), separated by commas. containerd looks for a part on the host, where nothing else is known of the content.
const LabelVolumePaths = labelPrefix + "volume-paths"

// Bounds on LabelVolumePaths: how many folders, and one's path in bytes.
const (
	maxVolumeParts = 256
	maxVolumePart  = 255
)

// standIn says what the folder holds that containerd is to mount for a container on top of parent. Whatever containerd does
// not tell is left out of it: numeric users need nothing of it. containerd may take seconds to answer, so the caller holds
// no lock.
func (s *Snapshotter) standIn(ctx context.Context, key, parent string) (map[string][]byte, error) {
	var below layerName
	err := s.meta.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		below, err = imageBelow(ctx, parent)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("find the image of snapshot %s: %w", key, err)
	}
	configs := s.configs(ctx, below.Chain)
	files := map[string][]byte{}
	if s.namedUsers {
		var users []string
		for _, c := range configs {
			users = append(users, c.User)
		}
		files = hostroot.Collect(users...).Files()
	}
	if m := imageVolumeKey.FindStringSubmatch(key); m != nil {
		for _, c := range configs {
			for _, folder := range volumeParts(c.Labels[LabelVolumePaths]) {
				files[folder] = nil
			}
		}
		option, err := s.volume(s.imageTarget(ctx, digest.NewDigestFromEncoded(digest.SHA256, m[1]), below)).Option()
		if err != nil {
			return nil, fmt.Errorf("describe the image of volume %s: %w", key, err)
		}
		files[hostroot.VolumeFile] = []byte(option)
	}
	return files, nil
}

// configs returns the configuration of each image that has the chain as its root: images with equal layers and different
// configurations are nothing unusual, and a container's Prepare does not say which of them it runs.
func (s *Snapshotter) configs(ctx context.Context, chain digest.Digest) (configs []ocispec.ImageConfig) {
	if s.images == nil || chain == "" {
		return nil
	}
	found, err := s.images.Containing(ctx, chain)
	if err != nil {
		log.G(ctx).WithError(err).WithField("digest", chain.String()).
			Warn("users that the image names cannot be looked up: containers of it start with numeric and well-known users only")
		return nil
	}
	for _, image := range found {
		if image.Top() == chain {
			configs = append(configs, image.Config)
		}
	}
	return configs
}

// volumeParts reads LabelVolumePaths: folders, separated by commas, as names for hostRoots. What is none is left out.
func volumeParts(label string) (parts []string) {
	for part := range strings.SplitSeq(label, ",") {
		part = strings.Trim(strings.TrimSpace(part), "/")
		if len(parts) == maxVolumeParts || part == "" || len(part) > maxVolumePart || !filepath.IsLocal(part) || path.Clean(part) != part {
			continue
		}
		inside := false
		for _, file := range []string{hostroot.PasswdFile, hostroot.GroupFile, hostroot.VolumeFile} {
			inside = inside || part == file || strings.HasPrefix(part, file+"/")
		}
		if !inside && !strings.ContainsFunc(part, unicode.IsControl) {
			parts = append(parts, part+"/")
		}
	}
	return parts
}

// imageTarget describes the image whose manifest or index has the digest. The layer below knows only which image brought
// it first.
func (s *Snapshotter) imageTarget(ctx context.Context, d digest.Digest, below layerName) layerName {
	if s.images == nil {
		return below
	}
	records, err := s.images.Targeting(ctx, d)
	if err != nil {
		log.G(ctx).WithError(err).WithField("digest", d.String()).Warn("name of the image of a volume is not known for certain")
		return below
	}
	var names []string
	for _, r := range records {
		// CRI also names an image by the digest of its configuration.
		if !strings.HasPrefix(r.Name, "sha256:") && len(r.Name) <= maxReference {
			names = append(names, r.Name)
		}
	}
	if len(names) == 0 {
		return below
	}
	slices.Sort(names)
	found := layerName{Reference: names[0], Manifest: d, Top: true}
	if slices.Contains(names, below.Reference) {
		found.Reference = below.Reference
	}
	return found
}

// hostPath is what a mount of the snapshot binds: its own folder, or the empty one.
func (s *Snapshotter) hostPath(ctx context.Context, info snapshots.Info) string {
	name := info.Labels[LabelHostRoot]
	if !hostRootName.MatchString(name) {
		return s.empty
	}
	path := s.hostRoots.path(name)
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		log.G(ctx).WithField("path", path).Warn("folder with the names of the image's users is gone: only numeric users can be used")
		return s.empty
	}
	return path
}
