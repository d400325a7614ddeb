package seal

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Layout is an image in a folder in OCI's image layout. It is a Source and a Destination.
type Layout struct {
	dir, tag string
}

// NewLayout names an image of a layout by its tag. An empty tag means the only image when reading, and an image without a
// name when writing.
func NewLayout(dir, tag string) *Layout {
	return &Layout{dir: dir, tag: tag}
}

func (l *Layout) String() string {
	if l.tag == "" {
		return "oci:" + l.dir
	}
	return "oci:" + l.dir + ":" + l.tag
}

// index reads index.json; a missing one is an empty one.
func (l *Layout) index() (*ocispec.Index, error) {
	raw, err := os.ReadFile(filepath.Join(l.dir, ocispec.ImageIndexFile))
	if err != nil {
		return nil, err
	}
	var index ocispec.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, fmt.Errorf("parse %s of layout %s: %w", ocispec.ImageIndexFile, l.dir, err)
	}
	return &index, nil
}

// Resolve finds the image in index.json.
func (l *Layout) Resolve(context.Context) (ocispec.Descriptor, error) {
	index, err := l.index()
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("read OCI layout: %w", err)
	}
	var names []string
	for _, m := range index.Manifests {
		name := m.Annotations[ocispec.AnnotationRefName]
		if l.tag != "" && name == l.tag {
			return m, nil
		}
		names = append(names, name)
	}
	if l.tag == "" && len(index.Manifests) == 1 {
		return index.Manifests[0], nil
	}
	return ocispec.Descriptor{}, fmt.Errorf("layout %s has no image %q (it has %q): %w", l.dir, l.tag, names, errdefs.ErrNotFound)
}

func (l *Layout) path(d digest.Digest) (string, error) {
	if err := d.Validate(); err != nil {
		return "", fmt.Errorf("digest %.128q: %w", d, err)
	}
	return filepath.Join(l.dir, ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded()), nil
}

// Fetch opens a blob.
func (l *Layout) Fetch(_ context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	path, err := l.path(desc.Digest)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open blob: %w", err)
	}
	return f, nil
}

// Exists looks for a blob of the right size.
func (l *Layout) Exists(_ context.Context, desc ocispec.Descriptor) (bool, error) {
	path, err := l.path(desc.Digest)
	if err != nil {
		return false, err
	}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && info.Size() == desc.Size, err
}

// Write stores a blob. It appears under its name when it is complete.
func (l *Layout) Write(_ context.Context, r io.Reader) (_ digest.Digest, _ int64, retErr error) {
	dir := filepath.Join(l.dir, ocispec.ImageBlobsDir, digest.SHA256.String())
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", 0, fmt.Errorf("make OCI layout: %w", err)
	}
	f, err := os.CreateTemp(dir, ".tmp-")
	if err != nil {
		return "", 0, fmt.Errorf("write blob: %w", err)
	}
	defer func() {
		if retErr != nil {
			retErr = errors.Join(retErr, f.Close(), os.Remove(f.Name()))
		}
	}()
	d := digest.SHA256.Digester()
	size, err := io.CopyBuffer(io.MultiWriter(f, d.Hash()), onlyReader{r}, make([]byte, copyBuffer))
	if err != nil {
		return "", 0, fmt.Errorf("write blob: %w", err)
	}
	if err := f.Chmod(0o644); err != nil {
		return "", 0, fmt.Errorf("write blob: %w", err)
	}
	path, err := l.path(d.Digest())
	if err != nil {
		return "", 0, err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return "", 0, fmt.Errorf("write blob: %w", err)
	}
	// A failed close would have to remove what is published already; nothing is buffered in the process, so it cannot lose data.
	_ = f.Close()
	return d.Digest(), size, nil
}

// WriteManifest stores a manifest, and enters it in index.json when it is to be found.
func (l *Layout) WriteManifest(ctx context.Context, desc ocispec.Descriptor, raw []byte, tagged bool) error {
	if _, _, err := l.Write(ctx, bytes.NewReader(raw)); err != nil {
		return err
	}
	if !tagged {
		return nil
	}
	index, err := l.index()
	if errors.Is(err, fs.ErrNotExist) {
		index, err = &ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}, nil
	}
	if err != nil {
		return err
	}
	kept := index.Manifests[:0]
	for _, m := range index.Manifests {
		if m.Annotations[ocispec.AnnotationRefName] != l.tag {
			kept = append(kept, m)
		}
	}
	if l.tag != "" {
		desc.Annotations = map[string]string{ocispec.AnnotationRefName: l.tag}
	}
	index.Manifests = append(kept, desc)
	return l.writeFiles(index)
}

func (l *Layout) writeFiles(index *ocispec.Index) error {
	raw, err := json.Marshal(index)
	if err != nil {
		return fmt.Errorf("encode %s: %w", ocispec.ImageIndexFile, err)
	}
	for name, content := range map[string][]byte{
		ocispec.ImageLayoutFile: []byte(`{"imageLayoutVersion":"` + ocispec.ImageLayoutVersion + `"}`),
		ocispec.ImageIndexFile:  raw,
	} {
		tmp := filepath.Join(l.dir, "."+name+".tmp")
		if err := os.WriteFile(tmp, content, 0o644); err != nil { // a layout is for everybody
			return fmt.Errorf("write OCI layout: %w", err)
		}
		if err := os.Rename(tmp, filepath.Join(l.dir, name)); err != nil {
			return fmt.Errorf("write OCI layout: %w", err)
		}
	}
	return nil
}
