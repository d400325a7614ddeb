package harness

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-project/coffer/integration/registrytest"
)

// Layout is an OCI image layout on disk that holds one image.
type Layout struct {
	Dir      string
	Manifest ocispec.Manifest
	Config   ocispec.Image
	// Digest is the manifest's.
	Digest digest.Digest
}

// NewLayout makes an empty image for this machine's platform.
func NewLayout(dir string, config ocispec.ImageConfig) (*Layout, error) {
	l := &Layout{Dir: dir}
	l.Config = ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}, Config: config,
		RootFS: ocispec.RootFS{Type: "layers"},
	}
	l.Manifest = ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	return l, l.save()
}

// OpenLayout reads the image for linux/amd64 out of a layout on disk.
func OpenLayout(dir string) (*Layout, error) {
	l := &Layout{Dir: dir}
	var index ocispec.Index
	content, err := os.ReadFile(filepath.Join(dir, ocispec.ImageIndexFile))
	if err != nil {
		return nil, fmt.Errorf("open OCI layout %s: %w", dir, err)
	}
	if err := json.Unmarshal(content, &index); err != nil {
		return nil, fmt.Errorf("open OCI layout %s: %w", dir, err)
	}
	desc, err := l.choose(index)
	if err != nil {
		return nil, fmt.Errorf("open OCI layout %s: %w", dir, err)
	}
	l.Digest = desc.Digest
	if err := l.readJSON(desc.Digest, &l.Manifest); err != nil {
		return nil, err
	}
	return l, l.readJSON(l.Manifest.Config.Digest, &l.Config)
}

// choose follows nested indexes to the first image for linux/amd64; an image without a platform counts.
func (l *Layout) choose(index ocispec.Index) (ocispec.Descriptor, error) {
	for _, desc := range index.Manifests {
		if desc.MediaType == ocispec.MediaTypeImageIndex || desc.MediaType == "application/vnd.docker.distribution.manifest.list.v2+json" {
			var inner ocispec.Index
			if err := l.readJSON(desc.Digest, &inner); err != nil {
				return desc, err
			}
			if found, err := l.choose(inner); err == nil {
				return found, nil
			}
			continue
		}
		if desc.Platform == nil || (desc.Platform.OS == "linux" && desc.Platform.Architecture == "amd64") {
			return desc, nil
		}
	}
	return ocispec.Descriptor{}, errors.New("it holds no image for linux/amd64")
}

// AddLayer appends a layer and saves the image.
func (l *Layout) AddLayer(layer registrytest.Layer) error {
	desc, err := l.writeBlob(layer.Desc.MediaType, layer.Blob)
	if err != nil {
		return err
	}
	l.Manifest.Layers = append(l.Manifest.Layers, desc)
	l.Config.RootFS.DiffIDs = append(l.Config.RootFS.DiffIDs, layer.DiffID)
	return l.save()
}

// save writes configuration, manifest and index; blobs that nothing names any more stay, which harms nobody.
func (l *Layout) save() error {
	config, err := json.Marshal(l.Config)
	if err != nil {
		return err
	}
	if l.Manifest.Config, err = l.writeBlob(ocispec.MediaTypeImageConfig, config); err != nil {
		return err
	}
	manifest, err := json.Marshal(l.Manifest)
	if err != nil {
		return err
	}
	desc, err := l.writeBlob(ocispec.MediaTypeImageManifest, manifest)
	if err != nil {
		return err
	}
	l.Digest = desc.Digest
	index, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{desc},
	})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(l.Dir, ocispec.ImageIndexFile), index, 0o600); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(l.Dir, ocispec.ImageLayoutFile), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o600)
}

func (l *Layout) writeBlob(mediaType string, content []byte) (ocispec.Descriptor, error) {
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(content), Size: int64(len(content))}
	path := l.blobPath(desc.Digest)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return desc, err
	}
	return desc, os.WriteFile(path, content, 0o600)
}

func (l *Layout) blobPath(d digest.Digest) string {
	return filepath.Join(l.Dir, ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

func (l *Layout) readJSON(d digest.Digest, into any) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("read blob %q of %s: %w", d, l.Dir, err)
	}
	content, err := os.ReadFile(l.blobPath(d))
	if err != nil {
		return fmt.Errorf("read blob %s of %s: %w", d, l.Dir, err)
	}
	if err := json.Unmarshal(content, into); err != nil {
		return fmt.Errorf("read blob %s of %s: %w", d, l.Dir, err)
	}
	return nil
}

// Busybox is a layer with a static busybox, hard links for its usual applets, and two users.
func Busybox(path string) (registrytest.Layer, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return registrytest.Layer{}, fmt.Errorf("read busybox: %w; run make setup", err)
	}
	entries := []registrytest.Entry{
		{Name: "bin/"}, {Name: "etc/"}, {Name: "root/", Mode: 0o700}, {Name: "tmp/", Mode: 0o1777},
		{Name: "bin/busybox", Body: string(content), Mode: 0o755},
		{Name: "etc/passwd", Body: "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"},
		{Name: "etc/group", Body: "root:x:0:\nnogroup:x:65534:\n"},
	}
	for _, applet := range applets {
		entries = append(entries, registrytest.Entry{Name: "bin/" + applet, Type: tar.TypeLink, Link: "bin/busybox", Mode: 0o755})
	}
	return registrytest.NewLayer(registrytest.Gzip, entries...), nil
}

var applets = []string{
	"cat", "date", "dd", "echo", "env", "false", "free", "head", "hostname", "id", "ip", "kill", "ls", "mount", "nproc",
	"ps", "pwd", "seq", "sh", "sha256sum", "sleep", "stty", "test", "touch", "true", "wc", "wget", "yes",
}
