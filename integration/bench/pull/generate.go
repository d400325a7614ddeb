package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/coffer-project/coffer/integration/program"
	"github.com/coffer-project/coffer/owner/seal"
	"github.com/coffer-project/coffer/proto/kbs"
)

const (
	tag      = "bench"
	metaFile = "meta.json"
	page     = 4 << 10
	maxChunk = 1 << 20
)

// keyID and kek open the images. They protect nothing: the images hold noise.
var (
	keyID = kbs.ResourceURI{Repository: "bench", Type: "image-kek", Tag: "1"}
	kek   = sha256.Sum256([]byte("coffer pull benchmark"))
)

// image is a generated image: an encrypted one, in an OCI layout of its own.
type image struct {
	Name    string
	Encoder string
	Layers  []layerSize // as in the manifest

	dir string
}

// layerSize says what there is to do for a layer.
type layerSize struct {
	Packed int64 // bytes in the registry
	Tar    int64 // bytes of the tar stream
	Files  int64
	Pages  int64 // bytes of all files, each rounded up to whole pages, which is what they take in memory
}

// ensureImages returns the images, made where the cache lacks them.
func ensureImages(ctx context.Context, cache string, specs []imageSpec) ([]*image, error) {
	var images []*image
	for _, spec := range specs {
		dir := filepath.Join(cache, fmt.Sprintf("v%d", generatorVersion), spec.Name)
		img, err := readMeta(dir)
		if errors.Is(err, os.ErrNotExist) {
			program.Say("generating %s (once; kept in %s)", spec.Name, dir)
			img, err = makeImage(ctx, dir, spec)
		}
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", spec.Name, err)
		}
		images = append(images, img)
	}
	return images, nil
}

func readMeta(dir string) (*image, error) {
	raw, err := os.ReadFile(filepath.Join(dir, metaFile))
	if err != nil {
		return nil, err
	}
	img := &image{dir: dir}
	return img, json.Unmarshal(raw, img)
}

// makeImage generates and encrypts an image beside its place, and puts it there when it is whole.
func makeImage(ctx context.Context, dir string, spec imageSpec) (_ *image, retErr error) {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return nil, err
	}
	work, err := os.MkdirTemp(filepath.Dir(dir), ".new-")
	if err != nil {
		return nil, err
	}
	defer func() { retErr = errors.Join(retErr, os.RemoveAll(work)) }()
	plain := seal.NewLayout(filepath.Join(work, "plain"), tag)
	sealed := filepath.Join(work, "sealed")
	img := &image{Name: spec.Name, Encoder: spec.Encoder, dir: dir}
	if err := writePlain(ctx, plain, spec, img); err != nil {
		return nil, err
	}
	encrypted := seal.NewLayout(sealed, tag)
	if _, err := seal.Encrypt(ctx, plain, encrypted, seal.Options{KeyID: keyID, KEK: kek[:]}); err != nil {
		return nil, err
	}
	if err := addRecipient(ctx, sealed); err != nil {
		return nil, err
	}
	m, err := readManifest(ctx, encrypted)
	if err != nil {
		return nil, err
	}
	for i, l := range m.Layers {
		img.Layers[i].Packed = l.Size
	}
	raw, err := json.Marshal(img)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(sealed, metaFile), raw, 0o644); err != nil {
		return nil, err
	}
	return img, os.Rename(sealed, dir)
}

func readManifest(ctx context.Context, layout *seal.Layout) (*ocispec.Manifest, error) {
	desc, err := layout.Resolve(ctx)
	if err != nil {
		return nil, err
	}
	rc, err := layout.Fetch(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	var m ocispec.Manifest
	return &m, json.NewDecoder(rc).Decode(&m)
}

// writePlain writes the image before its encryption.
func writePlain(ctx context.Context, layout *seal.Layout, spec imageSpec, img *image) error {
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Layers: make([]ocispec.Descriptor, len(spec.Layers)),
	}
	config := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}}
	config.RootFS = ocispec.RootFS{Type: "layers", DiffIDs: make([]digest.Digest, len(spec.Layers))}
	img.Layers = make([]layerSize, len(spec.Layers))
	group, ctx := errgroup.WithContext(ctx)
	for i := range spec.Layers {
		group.Go(func() error {
			desc, diffID, size, err := writeLayer(ctx, layout, spec, i)
			m.Layers[i], config.RootFS.DiffIDs[i], img.Layers[i] = desc, diffID, size
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	raw, err := json.Marshal(config)
	if err != nil {
		return err
	}
	m.Config = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	if _, _, err := layout.Write(ctx, bytes.NewReader(raw)); err != nil {
		return err
	}
	if raw, err = json.Marshal(m); err != nil {
		return err
	}
	return layout.WriteManifest(ctx, ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}, raw, true)
}

// writeLayer streams one layer from the generator through the encoder to the layout.
func writeLayer(ctx context.Context, layout *seal.Layout, spec imageSpec, i int) (ocispec.Descriptor, digest.Digest, layerSize, error) {
	r, w := io.Pipe()
	hash := sha256.New()
	var size layerSize
	go func() {
		packed, err := encoder(w, spec.Encoder)
		if err == nil {
			size, err = writeTar(io.MultiWriter(packed, hash), spec.Layers[i], i)
			err = errors.Join(err, packed.Close())
		}
		w.CloseWithError(err)
	}()
	dgst, n, err := layout.Write(ctx, r)
	r.CloseWithError(err)
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer + spec.packing(), Digest: dgst, Size: n},
		sum(hash), size, err
}

func sum(h hash.Hash) digest.Digest { return digest.NewDigest(digest.SHA256, h) }

func encoder(w io.Writer, name string) (io.WriteCloser, error) {
	switch name {
	case gzipGo:
		return gzip.NewWriter(w), nil
	case zstdGo:
		// One goroutine: how the blocks are cut must not depend on the machine.
		return zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
	}
	return struct {
		io.Writer
		io.Closer
	}{w, io.NopCloser(nil)}, nil
}

// writeTar writes a layer's files, a hundred to a folder, and counts what they take.
func writeTar(w io.Writer, spec layerSpec, layer int) (layerSize, error) {
	src := newSource(uint64(layer) + 1)
	count := &counter{w: w}
	tw := tar.NewWriter(count)
	var size layerSize
	stamp := time.Unix(1700000000, 0)
	buf := make([]byte, maxChunk)
	for written := int64(0); written < spec.Bytes; size.Files++ {
		n := spec.Bytes
		if spec.Mean > 0 {
			n = src.size(spec.Mean)
		}
		file := int(size.Files)
		folder := fmt.Sprintf("l%d/d%d/", layer, file/100)
		if file%100 == 0 {
			if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: folder, Mode: 0o755, ModTime: stamp}); err != nil {
				return size, err
			}
		}
		name := fmt.Sprintf("%sfile-%d", folder, file)
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: n, ModTime: stamp}); err != nil {
			return size, err
		}
		for left := n; left > 0; {
			chunk := buf[:min(left, maxChunk)]
			src.fill(chunk, spec.Content, file)
			if _, err := tw.Write(chunk); err != nil {
				return size, err
			}
			left -= int64(len(chunk))
		}
		written += n
		size.Pages += (n + page - 1) / page * page
	}
	err := tw.Close()
	size.Tar = count.n
	return size, err
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
