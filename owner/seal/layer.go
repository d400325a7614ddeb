package seal

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"maps"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containers/ocicrypt/blockcipher"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-project/coffer/proto/keyprovider"
)

const (
	pubOptsAnnotation = "org.opencontainers.image.enc.pubopts"
	encryptedSuffix   = "+encrypted"

	dockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	dockerManifestList = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerLayer        = "application/vnd.docker.image.rootfs.diff.tar"
	dockerForeignLayer = "application/vnd.docker.image.rootfs.foreign.diff.tar"

	nonDistributableLayer = "application/vnd.oci.image.layer.nondistributable.v1.tar"
)

// toOCI gives a manifest OCI's media types. Encrypted layers are defined there only. Layers that registries need not hold
// become ordinary ones: guests know no other place.
func toOCI(m *ocispec.Manifest) error {
	m.MediaType, m.SchemaVersion = ocispec.MediaTypeImageManifest, 2
	switch m.Config.MediaType {
	case ocispec.MediaTypeImageConfig, "application/vnd.docker.container.image.v1+json":
		m.Config.MediaType = ocispec.MediaTypeImageConfig
	default:
		return fmt.Errorf("manifest is not that of a container image: its configuration has media type %.128q: %w", m.Config.MediaType, errdefs.ErrInvalidArgument)
	}
	for i := range m.Layers {
		t := m.Layers[i].MediaType
		for _, docker := range []string{dockerLayer, dockerForeignLayer} {
			if packing, ok := strings.CutPrefix(t, docker); ok {
				t = ocispec.MediaTypeImageLayer + strings.Replace(packing, ".", "+", 1)
			}
		}
		if packing, ok := strings.CutPrefix(t, nonDistributableLayer); ok {
			t = ocispec.MediaTypeImageLayer + packing
		}
		m.Layers[i].MediaType, m.Layers[i].URLs = t, nil
	}
	return nil
}

// encryptLayer streams one layer through the cipher and returns the descriptor of the result.
func (s *sealer) encryptLayer(ctx context.Context, desc ocispec.Descriptor, platform string) (ocispec.Descriptor, error) {
	if strings.HasSuffix(desc.MediaType, encryptedSuffix) {
		return desc, fmt.Errorf("%s is encrypted already: %w", desc.Digest, errdefs.ErrFailedPrecondition)
	}
	if !strings.Contains(desc.MediaType, ".tar") {
		return desc, fmt.Errorf("%s has media type %.128q, which cannot be encrypted: %w", desc.Digest, desc.MediaType, errdefs.ErrNotImplemented)
	}
	plain, err := s.open(ctx, desc, platform)
	if err != nil {
		return desc, err
	}
	defer plain.Close()
	cipher, err := blockcipher.NewLayerBlockCipherHandler()
	if err != nil {
		return desc, fmt.Errorf("prepare cipher: %w", err)
	}
	ciphertext, finish, err := cipher.Encrypt(plain, blockcipher.AES256CTR)
	if err != nil {
		return desc, fmt.Errorf("prepare cipher: %w", err)
	}
	dgst, size, err := s.dst.Write(ctx, ciphertext)
	if err != nil {
		return desc, err
	}
	opts, err := finish()
	if err != nil {
		return desc, fmt.Errorf("finish cipher: %w", err)
	}
	opts.Private.Digest = desc.Digest
	annotations, err := s.annotations(opts)
	if err != nil {
		return desc, err
	}
	out := ocispec.Descriptor{MediaType: desc.MediaType + encryptedSuffix, Digest: dgst, Size: size, Annotations: map[string]string{}}
	maps.Copy(out.Annotations, desc.Annotations)
	maps.Copy(out.Annotations, annotations)
	return out, nil
}

// annotations wraps the layer's key.
func (s *sealer) annotations(opts blockcipher.LayerBlockCipherOptions) (map[string]string, error) {
	private, err := json.Marshal(opts.Private)
	if err != nil {
		return nil, fmt.Errorf("encode layer key: %w", err)
	}
	public, err := json.Marshal(opts.Public)
	if err != nil {
		return nil, fmt.Errorf("encode layer options: %w", err)
	}
	packet, err := keyprovider.Seal(s.o.KEK, s.o.KeyID, s.o.Wrap, private)
	if err != nil {
		return nil, fmt.Errorf("wrap layer key: %w", err)
	}
	raw, err := packet.Encode()
	if err != nil {
		return nil, fmt.Errorf("wrap layer key: %w", err)
	}
	return map[string]string{
		keyprovider.LayerAnnotation: base64.StdEncoding.EncodeToString(raw),
		pubOptsAnnotation:           base64.StdEncoding.EncodeToString(public),
	}, nil
}

// copyLayer writes a layer that stays plain.
func (s *sealer) copyLayer(ctx context.Context, desc ocispec.Descriptor, platform string) error {
	there, err := s.dst.Exists(ctx, desc)
	if err != nil {
		return err
	}
	if there {
		s.o.Progress(Event{Layer: desc.Digest, Platform: platform, Done: desc.Size, Total: desc.Size})
		return nil
	}
	rc, err := s.open(ctx, desc, platform)
	if err != nil {
		return err
	}
	defer rc.Close()
	_, _, err = s.dst.Write(ctx, rc)
	return err
}

// open streams a layer of the source, checked and with progress.
func (s *sealer) open(ctx context.Context, desc ocispec.Descriptor, platform string) (io.ReadCloser, error) {
	rc, err := s.src.Fetch(ctx, desc)
	if err != nil {
		return nil, err
	}
	v := newVerifier(rc, desc)
	v.progress = func(done int64) {
		s.o.Progress(Event{Layer: desc.Digest, Platform: platform, Done: done, Total: desc.Size})
	}
	return struct {
		io.Reader
		io.Closer
	}{v, rc}, nil
}

// verifier gives io.EOF only after exactly the bytes that a descriptor promises.
type verifier struct {
	r        io.Reader
	desc     ocispec.Descriptor
	hash     hash.Hash
	n        int64
	told     int64
	progress func(done int64)
}

// progressStep is how many bytes lie between two reports of progress.
const progressStep = 1 << 20

func newVerifier(r io.Reader, desc ocispec.Descriptor) *verifier {
	v := &verifier{r: r, desc: desc, progress: func(int64) {}}
	if desc.Digest.Validate() == nil {
		v.hash = desc.Digest.Algorithm().Hash()
	}
	return v
}

func (v *verifier) Read(p []byte) (int, error) {
	if v.hash == nil {
		return 0, fmt.Errorf("digest %.128q is malformed: %w", v.desc.Digest, errdefs.ErrInvalidArgument)
	}
	n, err := v.r.Read(p)
	v.hash.Write(p[:n])
	v.n += int64(n)
	if v.n-v.told >= progressStep || err != nil {
		v.told = v.n
		v.progress(v.n)
	}
	if v.n > v.desc.Size {
		return 0, fmt.Errorf("%s is longer than the %d bytes of its descriptor: %w", v.desc.Digest, v.desc.Size, errdefs.ErrDataLoss)
	}
	if err != io.EOF {
		return n, err
	}
	if v.n < v.desc.Size {
		return n, fmt.Errorf("%s ended after %d of %d bytes: %w", v.desc.Digest, v.n, v.desc.Size, io.ErrUnexpectedEOF)
	}
	if got := digest.NewDigest(v.desc.Digest.Algorithm(), v.hash); got != v.desc.Digest {
		return n, fmt.Errorf("content is %s, not %s: %w", got, v.desc.Digest, errdefs.ErrDataLoss)
	}
	return n, io.EOF
}
