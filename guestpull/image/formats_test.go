package image_test

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-project/coffer/guestpull/image"
	"github.com/coffer-project/coffer/guestpull/mediatype"
	rt "github.com/coffer-project/coffer/integration/registrytest"
	"github.com/coffer-project/coffer/integration/require"
	"github.com/coffer-project/coffer/proto/kbs"
	"github.com/coffer-project/coffer/proto/keyprovider"
)

// packing is a way to pack a tar stream: its type in OCI's and in Docker's words, and the packer.
type packing struct {
	oci, docker string
	pack        func(tar []byte) []byte
}

const dockerLayer = "application/vnd.docker.image.rootfs.diff.tar"

func packings() map[string]packing {
	gz := func(pack func([]byte) []byte) packing {
		return packing{ocispec.MediaTypeImageLayerGzip, dockerLayer + ".gzip", pack}
	}
	zst := func(pack func([]byte) []byte) packing {
		return packing{ocispec.MediaTypeImageLayerZstd, dockerLayer + ".zstd", pack}
	}
	return map[string]packing{
		"tar":                    {ocispec.MediaTypeImageLayer, dockerLayer, func(tar []byte) []byte { return tar }},
		"gzip":                   gz(func(tar []byte) []byte { return rt.Pack(tar, rt.Gzip) }),
		"gzip of many members":   gz(func(tar []byte) []byte { return inPieces(tar, rt.Gzip, nil) }),
		"gzip with a full head":  gz(fullGzip),
		"zstd":                   zst(func(tar []byte) []byte { return rt.Pack(tar, rt.Zstd) }),
		"zstd of many frames":    zst(func(tar []byte) []byte { return inPieces(tar, rt.Zstd, nil) }),
		"zstd with skipped ones": zst(func(tar []byte) []byte { return inPieces(tar, rt.Zstd, skippable(0x184D2A50, []byte("skip me"))) }),
		"seekable zstd":          zst(seekable),
	}
}

// inPieces packs a stream in pieces, each of which could stand alone, with something between and around them.
func inPieces(stream []byte, how string, between []byte) []byte {
	out := slices.Clone(between)
	for piece := range slices.Chunk(stream, 700) {
		out = append(append(out, rt.Pack(piece, how)...), between...)
	}
	return out
}

// fullGzip has all optional fields of RFC 1952 but the header's checksum.
func fullGzip(stream []byte) []byte {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	w.Name, w.Comment, w.Extra = "layer.tar", "made by hand", []byte{'S', 'G', 2, 0, 1, 2}
	if _, err := w.Write(stream); err != nil {
		panic(err)
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return buf.Bytes()
}

// skippable is a frame that decoders pass over (RFC 8878, section 3.1.2).
func skippable(magic uint32, content []byte) []byte {
	out := binary.LittleEndian.AppendUint32(nil, magic)
	return append(binary.LittleEndian.AppendUint32(out, uint32(len(content))), content...)
}

// seekable ends with the table of zstd's seekable format: entries of packed and unpacked sizes, and a footer.
func seekable(stream []byte) []byte {
	var out, table []byte
	frames := uint32(0)
	for piece := range slices.Chunk(stream, 1000) {
		packed := rt.Pack(piece, rt.Zstd)
		out = append(out, packed...)
		table = binary.LittleEndian.AppendUint32(table, uint32(len(packed)))
		table = binary.LittleEndian.AppendUint32(table, uint32(len(piece)))
		frames++
	}
	table = append(binary.LittleEndian.AppendUint32(table, frames), 0)
	table = binary.LittleEndian.AppendUint32(table, 0x8F92EAB1)
	return append(out, skippable(0x184D2A5E, table)...)
}

// layer packs a tar stream as a layer of a media type.
func (p packing) layer(mediaType string, entries ...rt.Entry) rt.Layer {
	stream := rt.Tar(entries...)
	blob := p.pack(stream)
	return rt.Layer{Desc: rt.Descriptor(mediaType, blob), DiffID: digest.FromBytes(stream), Blob: blob}
}

// formatImage has two layers: the upper one hides a file of the lower one, which has some content.
func formatImage(p packing, mediaType string, seal func(rt.Layer) rt.Layer, edit func(*ocispec.Manifest)) *rt.Image {
	lower := p.layer(mediaType, rt.Files(map[string]string{"hello": "one", "etc/a": strings.Repeat("content ", 10_000)})...)
	upper := p.layer(mediaType, rt.Files(map[string]string{"hello": "two"})...)
	return rt.NewImage([]rt.Layer{seal(lower), seal(upper)}, nil, edit)
}

func plainly(l rt.Layer) rt.Layer { return l }

func asDocker(m *ocispec.Manifest) {
	m.MediaType, m.Config.MediaType = mediatype.DockerManifest, mediatype.DockerConfig
}

// pullFormat pulls an image through all real stages and looks at what came out.
func pullFormat(t *testing.T, img *rt.Image, platform string) {
	t.Helper()
	r := rt.Start(t)
	ref := r.Put("format", "1", img)
	p, dir := newPuller(t, r, fakeKeys{keyURI: kek()})
	got, err := p.Pull(t.Context(), image.Request{ContainerID: "c", Reference: ref, Platform: platform})
	if err != nil {
		t.Fatal(err)
	}
	if hello, a := readFile(t, got.Layers, "hello"), readFile(t, got.Layers, "etc/a"); hello != "two" || len(a) != 80_000 {
		t.Errorf("hello is %q, etc/a has %d bytes", hello, len(a))
	}
	if err := p.Release(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	wantEmpty(t, dir)
}

// TestPackings pulls every packing of a layer, with OCI's and with Docker's types, open and encrypted.
func TestPackings(t *testing.T) {
	require.Root(t)
	seals := map[string]func(*testing.T) func(rt.Layer) rt.Layer{
		"open": func(*testing.T) func(rt.Layer) rt.Layer { return plainly },
		"encrypted": func(t *testing.T) func(rt.Layer) rt.Layer {
			return func(l rt.Layer) rt.Layer { return encrypt(t, l, keyprovider.WrapGCM) }
		},
	}
	for name, p := range packings() {
		for how, seal := range seals {
			t.Run(name+", OCI, "+how, func(t *testing.T) { pullFormat(t, formatImage(p, p.oci, seal(t), nil), "") })
			t.Run(name+", Docker, "+how, func(t *testing.T) { pullFormat(t, formatImage(p, p.docker, seal(t), asDocker), "") })
		}
	}
}

// TestEnvelopes pulls images whose keys are wrapped in every way that tools do it.
func TestEnvelopes(t *testing.T) {
	require.Root(t)
	gz := packings()["gzip"]
	// edit changes the annotations of a layer that was encrypted with wrap.
	sealed := func(wrap keyprovider.WrapType, edit func(t *testing.T, annotations map[string]string)) func(*testing.T) func(rt.Layer) rt.Layer {
		return func(t *testing.T) func(rt.Layer) rt.Layer {
			return func(l rt.Layer) rt.Layer {
				l = encrypt(t, l, wrap)
				if edit != nil {
					edit(t, l.Desc.Annotations)
				}
				return l
			}
		}
	}
	other := func(t *testing.T) string { return strangersPacket(t, "kbs:///default/image/stranger") }
	cases := map[string]func(*testing.T) func(rt.Layer) rt.Layer{
		"A256GCM":            sealed(keyprovider.WrapGCM, nil),
		"A256CTR":            sealed(keyprovider.WrapCTR, nil),
		"packet version 2":   sealed(keyprovider.WrapGCM, version2),
		"version 2, A256CTR": sealed(keyprovider.WrapCTR, version2),
		"another recipient first": sealed(keyprovider.WrapGCM, func(t *testing.T, a map[string]string) {
			a[keyprovider.LayerAnnotation] = other(t) + "," + a[keyprovider.LayerAnnotation]
		}),
		"another recipient last": sealed(keyprovider.WrapGCM, func(t *testing.T, a map[string]string) {
			a[keyprovider.LayerAnnotation] += "," + other(t)
		}),
		"same key, packet of another": sealed(keyprovider.WrapGCM, func(t *testing.T, a map[string]string) {
			a[keyprovider.LayerAnnotation] = strangersPacket(t, keyURI) + "," + a[keyprovider.LayerAnnotation]
		}),
		"recipients of other schemes": sealed(keyprovider.WrapGCM, func(_ *testing.T, a map[string]string) {
			a["org.opencontainers.image.enc.keys.jwe"] = "e30="
			a["org.opencontainers.image.enc.keys.pgp"] = "AAAA,BBBB"
		}),
	}
	for name, seal := range cases {
		t.Run(name, func(t *testing.T) { pullFormat(t, formatImage(gz, gz.oci, seal(t), nil), "") })
	}
	t.Run("one layer of two", func(t *testing.T) {
		first := true
		pullFormat(t, formatImage(gz, gz.oci, func(l rt.Layer) rt.Layer {
			if first {
				first = false
				return l
			}
			return encrypt(t, l, keyprovider.WrapGCM)
		}, nil), "")
	})
}

// strangersPacket is a well-formed packet that the test's key does not open.
func strangersPacket(t *testing.T, key string) string {
	t.Helper()
	uri, err := kbs.ParseResourceURI(key)
	if err != nil {
		t.Fatal(err)
	}
	packet, err := keyprovider.Seal(bytes.Repeat([]byte{9}, keyprovider.KEKSize), uri, keyprovider.WrapGCM, []byte(`{"symkey":"c2VjcmV0"}`))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := packet.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(raw)
}

// version2 rewrites a packet as newer key providers write it.
func version2(t *testing.T, annotations map[string]string) {
	t.Helper()
	raw, err := base64.StdEncoding.DecodeString(annotations[keyprovider.LayerAnnotation])
	if err != nil {
		t.Fatal(err)
	}
	var packet map[string]any
	if err := json.Unmarshal(raw, &packet); err != nil {
		t.Fatal(err)
	}
	maps.Copy(packet, map[string]any{"version": "0.1.0", "provider": "kbs", "provider_settings": map[string]any{}, "annotations": map[string]any{}})
	if raw, err = json.Marshal(packet); err != nil {
		t.Fatal(err)
	}
	annotations[keyprovider.LayerAnnotation] = base64.StdEncoding.EncodeToString(raw)
}

// TestRefusedFormats: what this guest does not read, it says so.
func TestRefusedFormats(t *testing.T) {
	require.Root(t)
	gz := packings()["gzip"]
	const foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
	const nonDistributable = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
	cases := map[string]struct {
		mediaType string
		seal      func(rt.Layer) rt.Layer
		edit      func(*ocispec.Manifest)
		text      string
	}{
		"foreign":                      {foreign, plainly, asDocker, "foreign layer"},
		"not distributable":            {nonDistributable, plainly, nil, "foreign layer"},
		"not distributable, encrypted": {nonDistributable, func(l rt.Layer) rt.Layer { return encrypt(t, l, keyprovider.WrapGCM) }, nil, "foreign layer"},
		"unknown packing":              {ocispec.MediaTypeImageLayer + "+xz", plainly, nil, "tar+xz"},
		"no image":                     {gz.oci, plainly, func(m *ocispec.Manifest) { m.Config.MediaType = ocispec.MediaTypeEmptyJSON }, "not a container image"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			r := rt.Start(t)
			ref := r.Put("format", "1", formatImage(gz, tc.mediaType, tc.seal, tc.edit))
			p, dir := newPuller(t, r, fakeKeys{keyURI: kek()})
			_, err := p.Pull(t.Context(), image.Request{ContainerID: "c", Reference: ref})
			if !errors.Is(err, errdefs.ErrNotImplemented) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("got %v, want %q", err, tc.text)
			}
			if n := r.Count(rt.LayerBlob, "GET"); n != 0 {
				t.Errorf("%d layers were fetched", n)
			}
			wantEmpty(t, dir)
		})
	}
}
