// Package volume is the document by which a snapshotter tells a shim what a root filesystem really is: Kata's
// virtual volume, carried as one option of the mount that containerd passes between them.
//
// Names and encoding are Kata Containers' and nydus-snapshotter's, so that either end may be theirs. The package only
// moves the document; what a volume may do is decided by its reader.
package volume

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/errdefs"
)

// OptionPrefix starts the mount option that carries the document in base64.
const OptionPrefix = "io.katacontainers.volume="

// Types of volumes. Coffer makes and runs TypeImageGuestPull only; the others are known so that a shim can name what
// it was given.
const (
	TypeImageGuestPull  = "image_guest_pull"
	TypeDirectBlock     = "direct_block"
	TypeImageRawBlock   = "image_raw_block"
	TypeLayerRawBlock   = "layer_raw_block"
	TypeImageNydusBlock = "image_nydus_block"
	TypeLayerNydusBlock = "layer_nydus_block"
	TypeImageNydusFS    = "image_nydus_fs"
	TypeLayerNydusFS    = "layer_nydus_fs"
)

// DummySource stands in Source where the snapshotter does not know the image reference: Kata's shim wants the field
// filled. It is never a reference.
const DummySource = "dummy-image-reference"

// Keys of ImagePull.Metadata.
const (
	// MetadataImageRef is the image reference as containerd knows it.
	MetadataImageRef = "containerd.io/snapshot/cri.image-ref"
	// MetadataManifestDigest is the digest of the manifest that containerd resolved on the host.
	MetadataManifestDigest = "containerd.io/snapshot/cri.manifest-digest"
	// MetadataLayerDigest is the digest of the topmost layer.
	MetadataLayerDigest = "containerd.io/snapshot/cri.layer-digest"
	// MetadataProxyMode is "true" for snapshots whose content never was on the host.
	MetadataProxyMode = "containerd.io/snapshot/nydus-proxy-mode"
	// MetadataPlatform is the platform to choose in an image index, such as linux/amd64.
	MetadataPlatform = "io.coffer/platform"
)

// Limits, in bytes. The kernel takes one page of mount options, and a host may mount what the snapshotter returns, so
// an option that we make leaves room for its neighbours. Others make larger ones, which never reach the kernel.
const (
	MaxOption       = 3500
	maxParsedOption = 64 << 10
)

// Volume is the document.
type Volume struct {
	VolumeType   string        `json:"volume_type"`
	Source       string        `json:"source,omitempty"`
	FSType       string        `json:"fs_type,omitempty"`
	Options      []string      `json:"options,omitempty"`
	DirectVolume *DirectVolume `json:"direct_volume,omitempty"`
	ImagePull    *ImagePull    `json:"image_pull,omitempty"`
	NydusImage   *NydusImage   `json:"nydus_image,omitempty"`
	DMVerity     *DMVerity     `json:"dm_verity,omitempty"`
}

// ImagePull belongs to TypeImageGuestPull; Source is then the image reference or DummySource.
type ImagePull struct {
	Metadata map[string]string `json:"metadata"`
}

// DirectVolume belongs to TypeDirectBlock.
type DirectVolume struct {
	Metadata map[string]string `json:"metadata"`
}

// NydusImage belongs to the nydus types.
type NydusImage struct {
	Config      string `json:"config"`
	SnapshotDir string `json:"snapshot_dir"`
}

// DMVerity describes an integrity tree; sizes and Offset are in bytes. Salt, HashFormat and NoSuperblock exist in
// Kata's newer runtime only.
type DMVerity struct {
	HashType     string  `json:"hashtype"`
	Hash         string  `json:"hash"`
	BlockNum     uint64  `json:"blocknum"`
	BlockSize    uint64  `json:"blocksize"`
	HashSize     uint64  `json:"hashsize"`
	Offset       uint64  `json:"offset"`
	Salt         *string `json:"salt,omitempty"`
	HashFormat   *uint32 `json:"hash_type,omitempty"`
	NoSuperblock *bool   `json:"no_superblock,omitempty"`
}

// Validate checks that the document is complete for its type. Failures are errdefs.ErrInvalidArgument.
func (v *Volume) Validate() error {
	missing := ""
	switch v.VolumeType {
	case TypeImageGuestPull:
		// Source may be empty: older snapshotters leave it so, and the reader has other places to find the reference.
		if v.ImagePull == nil {
			missing = "image_pull"
		}
	case TypeDirectBlock:
		if v.DirectVolume == nil {
			missing = "direct_volume"
		}
	case TypeImageRawBlock, TypeLayerRawBlock:
	case TypeImageNydusBlock, TypeLayerNydusBlock, TypeImageNydusFS, TypeLayerNydusFS:
		if v.NydusImage == nil {
			missing = "nydus_image"
		}
	default:
		return fmt.Errorf("volume type %q is unknown: %w", v.VolumeType, errdefs.ErrInvalidArgument)
	}
	if v.Source == "" && v.VolumeType != TypeImageGuestPull {
		missing = "source"
	}
	if missing != "" {
		return fmt.Errorf("volume of type %s has no %s: %w", v.VolumeType, missing, errdefs.ErrInvalidArgument)
	}
	return nil
}

// Option encodes the document as one mount option, prefix included. It fails with errdefs.ErrInvalidArgument when the
// document is not valid and errdefs.ErrOutOfRange when the option would exceed MaxOption bytes.
func (v *Volume) Option() (string, error) {
	if err := v.Validate(); err != nil {
		return "", err
	}
	// A missing map must not become JSON null, which Kata's shim refuses.
	doc := *v
	if doc.ImagePull != nil && doc.ImagePull.Metadata == nil {
		doc.ImagePull = &ImagePull{Metadata: map[string]string{}}
	}
	if doc.DirectVolume != nil && doc.DirectVolume.Metadata == nil {
		doc.DirectVolume = &DirectVolume{Metadata: map[string]string{}}
	}
	raw, err := json.Marshal(&doc)
	if err != nil {
		return "", fmt.Errorf("encode volume: %w", err)
	}
	option := OptionPrefix + base64.StdEncoding.EncodeToString(raw)
	if len(option) > MaxOption {
		return "", fmt.Errorf("volume option takes %d bytes, limit %d; its metadata is too large: %w",
			len(option), MaxOption, errdefs.ErrOutOfRange)
	}
	return option, nil
}

// Parse decodes and validates one mount option made by Option or by a peer. Everything that is not exactly one known
// document fails with errdefs.ErrInvalidArgument.
func Parse(option string) (*Volume, error) {
	encoded, ok := strings.CutPrefix(option, OptionPrefix)
	if !ok {
		return nil, fmt.Errorf("mount option does not start with %s: %w", OptionPrefix, errdefs.ErrInvalidArgument)
	}
	if len(option) > maxParsedOption {
		return nil, fmt.Errorf("volume option takes %d bytes, limit %d: %w",
			len(option), maxParsedOption, errdefs.ErrInvalidArgument)
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(encoded)
	if err != nil {
		return nil, fmt.Errorf("decode volume option: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.DisallowUnknownFields()
	var v Volume
	if err := decoder.Decode(&v); err != nil {
		return nil, fmt.Errorf("decode volume document (is the snapshotter newer than this program?): %w: %w",
			err, errdefs.ErrInvalidArgument)
	}
	if _, err := decoder.Token(); err != io.EOF {
		return nil, fmt.Errorf("volume document has data after its end: %w", errdefs.ErrInvalidArgument)
	}
	if err := v.Validate(); err != nil {
		return nil, err
	}
	return &v, nil
}

// FromOptions finds the document among the options of one mount. found is false when there is none. More than one is
// refused with errdefs.ErrInvalidArgument: readers that pick one of two disagree about which.
func FromOptions(options []string) (v *Volume, found bool, err error) {
	for _, option := range options {
		if !strings.HasPrefix(option, OptionPrefix) {
			continue
		}
		if found {
			return nil, false, fmt.Errorf("mount has more than one %s option: %w",
				strings.TrimSuffix(OptionPrefix, "="), errdefs.ErrInvalidArgument)
		}
		if v, err = Parse(option); err != nil {
			return nil, false, err
		}
		found = true
	}
	return v, found, nil
}
