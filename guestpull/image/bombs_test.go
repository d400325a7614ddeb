package image_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/guestpull/unpack"
	rt "github.com/coffer-project/coffer/integration/registrytest"
	"github.com/coffer-project/coffer/integration/require"
	"github.com/coffer-project/coffer/proto/keyprovider"
)

// zeros packs n zero bytes after head.
func zeros(t *testing.T, head []byte, n int64) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := gzip.NewWriterLevel(&buf, gzip.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(head); err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(w, zero{}, n); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

type zero struct{}

func (zero) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// runs is a zstd frame of blocks that each repeat one byte 128 KiB times, which takes four bytes; RFC 8878, section 3.1.1.
func runs(blocks int) []byte {
	out := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x38} // no checksum, no size, window of 128 KiB
	for i := range blocks {
		head := uint32(128<<10)<<3 | 1<<1
		if i == blocks-1 {
			head |= 1
		}
		out = append(out, byte(head), byte(head>>8), byte(head>>16), 0)
	}
	return out
}

// emptyFrames are zstd frames that hold nothing.
func emptyFrames(n int) []byte {
	frame := binary.LittleEndian.AppendUint32(nil, 0x184d2a50)
	frame = binary.LittleEndian.AppendUint32(frame, 0)
	return bytes.Repeat(frame, n)
}

// header is the tar header of a file that says it is that large.
func header(t *testing.T, size int64) []byte {
	t.Helper()
	var buf bytes.Buffer
	if err := tar.NewWriter(&buf).WriteHeader(&tar.Header{Name: "f", Typeflag: tar.TypeReg, Mode: 0o644, Size: size}); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// TestBombs pulls small layers that unpack to much, or that take long to come to nothing. A pull of them ends with an error
// long before it took what they would take.
func TestBombs(t *testing.T) {
	require.Root(t)
	limits := unpack.DefaultLimits()
	limits.Bytes, limits.Names = 80<<20, 8<<20
	const more = 100 << 20
	cases := map[string]struct {
		packing string
		blob    []byte
		wantErr error // nil where there is nothing in the layer, after all
	}{
		"file of zeros":           {rt.Gzip, zeros(t, header(t, 70<<20), 71<<20), errdefs.ErrResourceExhausted},
		"stream longer than all":  {rt.Gzip, zeros(t, nil, more), errdefs.ErrOutOfRange},
		"size of petabytes":       {rt.Gzip, zeros(t, header(t, 1<<50), 1<<20), errdefs.ErrOutOfRange},
		"zstd runs":               {rt.Zstd, runs(more >> 17), errdefs.ErrOutOfRange},
		"zstd window":             {rt.Zstd, []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xff, 1, 0, 0}, errdefs.ErrOutOfRange},
		"zstd size that is a lie": {rt.Zstd, append([]byte{0x28, 0xb5, 0x2f, 0xfd, 0xe0}, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 1, 0, 0), errdefs.ErrOutOfRange},
		"frames of nothing":       {rt.Zstd, emptyFrames(200_000), nil},
		"members of nothing":      {rt.Gzip, bytes.Repeat(rt.Pack(nil, rt.Gzip), 50_000), nil},
		"extended header of MiBs": {rt.Gzip, zeros(t, paxHeader(t, more), 1<<20), errdefs.ErrInvalidArgument},
		"directories without end": {rt.Gzip, rt.Pack(deepDirs(10), rt.Gzip), errdefs.ErrInvalidArgument},
		"names without end":       {rt.Gzip, rt.Pack(wideDirs(40_000), rt.Gzip), errdefs.ErrOutOfRange},
		"headers that stay":       {rt.Gzip, rt.Pack(pinned(150), rt.Gzip), errdefs.ErrOutOfRange},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			l := rt.NewLayerFromTar(tc.packing, nil)
			l.Blob, l.Desc = tc.blob, rt.Descriptor(l.Desc.MediaType, tc.blob)
			img := rt.NewImage([]rt.Layer{encrypt(t, l, keyprovider.WrapGCM)}, nil, nil)
			if _, err := hostilePull(t, front(t, img, "", nil), limits); !errors.Is(err, tc.wantErr) {
				t.Errorf("got %v, want %v", err, tc.wantErr)
			}
		})
	}
}

// paxHeader is an extended header that says it is that large.
func paxHeader(t *testing.T, size int64) []byte {
	t.Helper()
	raw := header(t, size)
	raw[156] = tar.TypeXHeader
	copy(raw[148:156], "        ")
	sum := 0
	for _, b := range raw[:512] {
		sum += int(b)
	}
	copy(raw[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return raw
}

// deepDirs has files each of which lies below as many directories of its own as a path can have.
func deepDirs(files int) []byte {
	entries := make([]rt.Entry, files)
	for i := range entries {
		entries[i].Name = strings.Repeat(string(rune('a'+i%26))+"/", 2000) + strings.Repeat("x", i%200+1)
	}
	return rt.Tar(entries...)
}

// wideDirs has directories with long names.
func wideDirs(n int) []byte {
	entries := make([]rt.Entry, n)
	for i := range entries {
		entries[i].Name = fmt.Sprintf("%0240d/", i)
	}
	return rt.Tar(entries...)
}

// pinned has directories whose extended headers are as large as they may be.
func pinned(n int) []byte {
	entries := make([]rt.Entry, n)
	for i := range entries {
		entries[i] = rt.Entry{Name: fmt.Sprintf("%0200d/", i), PAX: map[string]string{"comment": strings.Repeat("c", 1<<20-1024)}}
	}
	return rt.Tar(entries...)
}
