package registrytest

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Packing of a layer.
const (
	Plain = ""
	Gzip  = "gzip"
	Zstd  = "zstd"
)

// Entry is one entry of a layer. The zero Type is a regular file, or a directory when the name ends in a slash.
type Entry struct {
	Name, Body, Link string
	Type             byte
	Mode             int64 // default 0644, directories 0755
	UID, GID         int
	Xattrs           map[string]string
	PAX              map[string]string // further records of the extended header
	Major, Minor     int64
}

// Files is the short form of a layer: regular files by name.
func Files(files map[string]string) []Entry {
	var entries []Entry
	for _, name := range slices.Sorted(maps.Keys(files)) {
		entries = append(entries, Entry{Name: name, Body: files[name], Mode: 0o755})
	}
	return entries
}

// Tar writes entries in order, with a fixed time.
func Tar(entries ...Entry) []byte {
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, e := range entries {
		must(tw.WriteHeader(e.header()))
		_, err := io.WriteString(tw, e.Body)
		must(err)
	}
	must(tw.Close())
	return buf.Bytes()
}

func (e Entry) header() *tar.Header {
	h := &tar.Header{
		Name: e.Name, Linkname: e.Link, Typeflag: e.Type, Mode: e.Mode, Uid: e.UID, Gid: e.GID, Size: int64(len(e.Body)),
		ModTime: time.Unix(1700000000, 0), Devmajor: e.Major, Devminor: e.Minor, Format: tar.FormatPAX,
	}
	if h.Typeflag == 0 {
		h.Typeflag = tar.TypeReg
		if len(e.Name) > 0 && e.Name[len(e.Name)-1] == '/' {
			h.Typeflag = tar.TypeDir
		}
	}
	if h.Mode == 0 {
		h.Mode = 0o644
		if h.Typeflag == tar.TypeDir {
			h.Mode = 0o755
		}
	}
	if len(e.PAX) > 0 {
		h.PAXRecords = maps.Clone(e.PAX)
	}
	for key, value := range e.Xattrs {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+key] = value
	}
	return h
}

// Pack compresses a tar stream.
func Pack(stream []byte, packing string) []byte {
	var (
		buf bytes.Buffer
		w   io.WriteCloser
		err error
	)
	switch packing {
	case Plain:
		return stream
	case Gzip:
		w = gzip.NewWriter(&buf)
	case Zstd:
		w, err = zstd.NewWriter(&buf)
		must(err)
	default:
		panic(fmt.Sprintf("registrytest: unknown packing %q", packing))
	}
	_, err = w.Write(stream)
	must(err)
	must(w.Close())
	return buf.Bytes()
}

// Layer is a layer in all its forms.
type Layer struct {
	Desc   ocispec.Descriptor
	DiffID digest.Digest
	// Blob is what the registry holds.
	Blob []byte
}

// NewLayer packs entries as a layer of OCI's media types.
func NewLayer(packing string, entries ...Entry) Layer {
	return NewLayerFromTar(packing, Tar(entries...))
}

// NewLayerFromTar packs any bytes as a layer.
func NewLayerFromTar(packing string, stream []byte) Layer {
	blob := Pack(stream, packing)
	mediaType := ocispec.MediaTypeImageLayer
	if packing != Plain {
		mediaType += "+" + packing
	}
	return Layer{Desc: Descriptor(mediaType, blob), DiffID: digest.FromBytes(stream), Blob: blob}
}

// Descriptor describes bytes.
func Descriptor(mediaType string, raw []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
}

// Image is an image or an index, with all that belongs to it, ready to be put into a registry.
type Image struct {
	// Desc and Raw are the manifest or the index.
	Desc ocispec.Descriptor
	Raw  []byte
	// Manifest is set for images.
	Manifest ocispec.Manifest
	Config   ocispec.Image
	Layers   []Layer
	// Blobs and Manifests are what the registry must hold beside Raw, by digest.
	Blobs     map[digest.Digest][]byte
	Manifests map[digest.Digest]ocispec.Descriptor
	raws      map[digest.Digest][]byte
}

// NewImage builds an image for linux/amd64. edit changes the configuration and the manifest before they are encoded; the
// configuration comes first, then the manifest with its descriptor. Both may be nil.
func NewImage(layers []Layer, editConfig func(*ocispec.Image), editManifest func(*ocispec.Manifest)) *Image {
	img := &Image{Layers: layers, Blobs: map[digest.Digest][]byte{}, Manifests: map[digest.Digest]ocispec.Descriptor{}, raws: map[digest.Digest][]byte{}}
	img.Config = ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"},
		Config:   ocispec.ImageConfig{Cmd: []string{"/hello"}},
		RootFS:   ocispec.RootFS{Type: "layers"},
	}
	img.Manifest = ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for _, l := range layers {
		img.Config.RootFS.DiffIDs = append(img.Config.RootFS.DiffIDs, l.DiffID)
		img.Manifest.Layers = append(img.Manifest.Layers, l.Desc)
		img.Blobs[l.Desc.Digest] = l.Blob
	}
	if editConfig != nil {
		editConfig(&img.Config)
	}
	config := encode(img.Config)
	img.Manifest.Config = Descriptor(ocispec.MediaTypeImageConfig, config)
	img.Blobs[img.Manifest.Config.Digest] = config
	if editManifest != nil {
		editManifest(&img.Manifest)
	}
	img.Raw = encode(img.Manifest)
	img.Desc = Descriptor(img.Manifest.MediaType, img.Raw)
	return img
}

// NewIndex builds an index of images by platform (os/architecture or os/architecture/variant). Edits change it before it is
// encoded.
func NewIndex(images map[string]*Image, edits ...func(*ocispec.Index)) *Image {
	out := &Image{Blobs: map[digest.Digest][]byte{}, Manifests: map[digest.Digest]ocispec.Descriptor{}, raws: map[digest.Digest][]byte{}}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, name := range slices.Sorted(maps.Keys(images)) {
		img := images[name]
		p := Platform(name)
		desc := img.Desc
		desc.Platform = &p
		index.Manifests = append(index.Manifests, desc)
		maps.Copy(out.Blobs, img.Blobs)
		out.Manifests[desc.Digest] = img.Desc
		out.raws[desc.Digest] = img.Raw
	}
	for _, edit := range edits {
		edit(&index)
	}
	out.Raw = encode(index)
	out.Desc = Descriptor(index.MediaType, out.Raw)
	return out
}

// Platform reads os/architecture or os/architecture/variant as it stands.
func Platform(name string) ocispec.Platform {
	var p ocispec.Platform
	var ok bool
	if p.OS, p.Architecture, ok = strings.Cut(name, "/"); !ok {
		panic("registrytest: platform " + name + " is not os/architecture")
	}
	p.Architecture, p.Variant, _ = strings.Cut(p.Architecture, "/")
	return p
}

func encode(v any) []byte {
	raw, err := json.Marshal(v)
	must(err)
	return raw
}

// must stops a test whose own input cannot be built.
func must(err error) {
	if err != nil {
		panic(fmt.Sprintf("registrytest: %v", err))
	}
}
