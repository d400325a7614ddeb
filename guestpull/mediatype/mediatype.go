// Package mediatype is the allow-list of the document and layer types that a guest accepts. What is not listed here is
// refused, so that a registry cannot choose how its bytes are read.
package mediatype

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Docker's names for what OCI has its own names for.
const (
	DockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	DockerManifestList = "application/vnd.docker.distribution.manifest.list.v2+json"
	DockerConfig       = "application/vnd.docker.container.image.v1+json"

	dockerLayer = "application/vnd.docker.image.rootfs.diff.tar"

	// Layers of these types need not be in a registry: other addresses stand in the manifest for them. Both are out of
	// use, Docker's since Windows images come without them and OCI's since version 1.1 of the specification.
	dockerForeignLayer    = "application/vnd.docker.image.rootfs.foreign.diff.tar"
	nonDistributableLayer = "application/vnd.oci.image.layer.nondistributable.v1.tar"

	encryptedSuffix = "+encrypted"
)

// Compression says how the tar stream of a layer is packed.
type Compression int

// The compressions that a guest can undo.
const (
	None Compression = iota
	Gzip
	Zstd
)

func (c Compression) String() string {
	switch c {
	case None:
		return "none"
	case Gzip:
		return "gzip"
	case Zstd:
		return "zstd"
	default:
		return fmt.Sprintf("Compression(%d)", int(c))
	}
}

// Layer is what a layer's media type says about its bytes.
type Layer struct {
	Compression Compression
	Encrypted   bool
}

// layers maps plain layer types; each exists once more with the suffix for encryption.
var layers = map[string]Compression{
	dockerLayer:                           None,
	dockerLayer + ".gzip":                 Gzip,
	dockerLayer + ".zstd":                 Zstd,
	ocispec.MediaTypeImageLayer:           None,
	ocispec.MediaTypeImageLayer + "+gzip": Gzip,
	ocispec.MediaTypeImageLayer + "+zstd": Zstd,
}

// ParseLayer reads the media type of a layer. A type that is not on the list is errdefs.ErrNotImplemented.
func ParseLayer(mediaType string) (Layer, error) {
	plain, encrypted := strings.CutSuffix(mediaType, encryptedSuffix)
	compression, ok := layers[plain]
	switch {
	case strings.HasPrefix(plain, dockerForeignLayer), strings.HasPrefix(plain, nonDistributableLayer):
		return Layer{}, fmt.Errorf("layer media type %q: this is a foreign layer, which registries need not hold and guests fetch from nowhere else; cofferctl image encrypt makes ordinary layers of such ones: %w",
			clip(mediaType), errdefs.ErrNotImplemented)
	case !ok:
		return Layer{}, fmt.Errorf("layer media type %q is not supported (supported: tar, tar+gzip and tar+zstd, each plain or %s): %w",
			clip(mediaType), encryptedSuffix, errdefs.ErrNotImplemented)
	}
	return Layer{Compression: compression, Encrypted: encrypted}, nil
}

// IsIndex reports whether the type is a list of manifests for several platforms.
func IsIndex(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageIndex || mediaType == DockerManifestList
}

// IsManifest reports whether the type is the manifest of one image.
func IsManifest(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageManifest || mediaType == DockerManifest
}

// IsConfig reports whether the type is the configuration of a container image.
func IsConfig(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageConfig || mediaType == DockerConfig
}

// Manifests lists the document types to ask a registry for.
func Manifests() []string {
	return []string{ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex, DockerManifest, DockerManifestList}
}

// clip keeps a hostile media type from filling logs and errors.
func clip(s string) string {
	const limit = 128
	if len(s) > limit {
		return s[:limit] + "..."
	}
	return s
}
