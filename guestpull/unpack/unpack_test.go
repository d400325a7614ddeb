package unpack

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/guestpull/mediatype"
	rt "github.com/coffer-project/coffer/integration/registrytest"
	"github.com/coffer-project/coffer/integration/require"
)

func apply(t *testing.T, u *Unpacker, entries ...rt.Entry) (string, *Deferred, error) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "layer")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	_, deferred, err := u.Apply(t.Context(), dir, bytes.NewReader(rt.Tar(entries...)))
	return dir, deferred, err
}

func TestHostileTars(t *testing.T) {
	require.Root(t)
	long := strings.Repeat("n", 300)
	cases := map[string]struct {
		entries []rt.Entry
		wantErr bool // otherwise the names are clamped into the layer
	}{
		"parent path":               {entries: []rt.Entry{{Name: "../../escape", Body: "x"}}},
		"absolute path":             {entries: []rt.Entry{{Name: "/escape", Body: "x"}}},
		"through absolute link":     {entries: []rt.Entry{{Name: "l", Type: tar.TypeSymlink, Link: "/"}, {Name: "l/escape", Body: "x"}}},
		"through relative link":     {entries: []rt.Entry{{Name: "l", Type: tar.TypeSymlink, Link: "../.."}, {Name: "l/escape", Body: "x"}}},
		"over a link":               {entries: []rt.Entry{{Name: "l", Type: tar.TypeSymlink, Link: "../escape"}, {Name: "l", Body: "x"}}},
		"folder becomes link":       {entries: []rt.Entry{{Name: "d/"}, {Name: "d/f", Body: "x"}, {Name: "d", Type: tar.TypeSymlink, Link: "../.."}, {Name: "d/escape", Body: "x"}}},
		"link of links":             {entries: []rt.Entry{{Name: "a", Type: tar.TypeSymlink, Link: "b"}, {Name: "b", Type: tar.TypeSymlink, Link: ".."}, {Name: "a/escape", Body: "x"}}},
		"circle of links":           {entries: []rt.Entry{{Name: "a", Type: tar.TypeSymlink, Link: "b"}, {Name: "b", Type: tar.TypeSymlink, Link: "a"}, {Name: "a/f", Body: "x"}}, wantErr: true},
		"magic link":                {entries: []rt.Entry{{Name: "l", Type: tar.TypeSymlink, Link: "/proc/self/root"}, {Name: "l/escape", Body: "x"}}},
		"dangling link as folder":   {entries: []rt.Entry{{Name: "l", Type: tar.TypeSymlink, Link: "../dir/sub"}, {Name: "l/f", Body: "x"}}},
		"hard link of the root":     {entries: []rt.Entry{{Name: "h", Type: tar.TypeLink, Link: "/"}}, wantErr: true},
		"hard link to itself":       {entries: []rt.Entry{{Name: "h", Body: "x"}, {Name: "h", Type: tar.TypeLink, Link: "h"}}, wantErr: true},
		"hard link out":             {entries: []rt.Entry{{Name: "h", Type: tar.TypeLink, Link: "../victim"}}, wantErr: true},
		"hard link through link":    {entries: []rt.Entry{{Name: "l", Type: tar.TypeSymlink, Link: ".."}, {Name: "h", Type: tar.TypeLink, Link: "l/victim"}}, wantErr: true},
		"whiteout of parent":        {entries: []rt.Entry{{Name: ".wh..."}}, wantErr: true},
		"whiteout of root":          {entries: []rt.Entry{{Name: ".wh.."}}, wantErr: true},
		"whiteout through link":     {entries: []rt.Entry{{Name: "l", Type: tar.TypeSymlink, Link: ".."}, {Name: "l/.wh.victim"}}},
		"opaque through link":       {entries: []rt.Entry{{Name: "l", Type: tar.TypeSymlink, Link: ".."}, {Name: "l/.wh..wh..opq"}}},
		"hidden name becomes link":  {entries: []rt.Entry{{Name: "d/.wh.dir"}, {Name: "d", Type: tar.TypeSymlink, Link: ".."}}},
		"component too long":        {entries: []rt.Entry{{Name: long}}, wantErr: true},
		"path too long":             {entries: []rt.Entry{{Name: strings.Repeat("a/", 2100) + "f"}}, wantErr: true},
		"link too long":             {entries: []rt.Entry{{Name: "l", Type: tar.TypeSymlink, Link: strings.Repeat("a/", 2100)}}, wantErr: true},
		"unknown type":              {entries: []rt.Entry{{Name: "x", Type: 'Z'}}, wantErr: true},
		"missing hard link target":  {entries: []rt.Entry{{Name: "h", Type: tar.TypeLink, Link: "nowhere"}}, wantErr: true},
		"file below file":           {entries: []rt.Entry{{Name: "f", Body: "x"}, {Name: "f/g", Body: "x"}}, wantErr: true},
		"overlay attribute":         {entries: []rt.Entry{{Name: "d/", Xattrs: map[string]string{"trusted.overlay.redirect": "/etc"}}}},
		"huge extended attribute":   {entries: []rt.Entry{{Name: "f", Xattrs: map[string]string{"user.x": strings.Repeat("x", 300<<10)}}}, wantErr: true},
		"device out of the way":     {entries: []rt.Entry{{Name: "dev/null", Type: tar.TypeChar, Major: 1, Minor: 3}, {Name: "dev/sda", Type: tar.TypeBlock, Major: 8}}},
		"nothing":                   {},
		"only the root":             {entries: []rt.Entry{{Name: "./", Mode: 0o777}}},
		"current folder everywhere": {entries: []rt.Entry{{Name: "././a/./b", Body: "x"}}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			parent := t.TempDir()
			dir := filepath.Join(parent, "layer")
			for _, d := range []string{dir, filepath.Join(parent, "dir")} {
				if err := os.Mkdir(d, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(filepath.Join(parent, "victim"), []byte("v"), 0o644); err != nil {
				t.Fatal(err)
			}
			u := New(DefaultLimits())
			_, deferred, err := u.Apply(t.Context(), dir, bytes.NewReader(rt.Tar(tc.entries...)))
			if err == nil {
				_, err = u.Complete(t.Context(), dir, deferred, nil)
			}
			if (err != nil) != tc.wantErr {
				t.Fatalf("got %v, want error %t", err, tc.wantErr)
			}
			checkClass(t, err)
			checkUntouched(t, parent)
			checkNoDevices(t, dir)
		})
	}
}

// checkClass fails for an error that does not say whose fault it is: a hostile layer is the image's.
func checkClass(t *testing.T, err error) {
	t.Helper()
	if err != nil && !errors.Is(err, errdefs.ErrInvalidArgument) && !errors.Is(err, errdefs.ErrOutOfRange) {
		t.Errorf("error of a hostile layer has another class: %v", err)
	}
}

// checkUntouched fails when anything beside the layer's directory changed.
func checkUntouched(t *testing.T, parent string) {
	t.Helper()
	entries, err := os.ReadDir(parent)
	if err != nil || len(entries) != 3 {
		t.Errorf("parent folder has %v, %v", entries, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(parent, "victim"), &st); err != nil || st.Nlink != 1 {
		t.Errorf("victim: %v, %d links", err, st.Nlink)
	}
	for _, d := range []string{parent, filepath.Join(parent, "dir")} {
		if _, err := unix.Lgetxattr(d, opaqueXattr, make([]byte, 8)); err == nil {
			t.Errorf("%s was marked opaque", d)
		}
	}
	if _, err := os.Lstat("/escape"); err == nil {
		t.Error("/escape was written")
	}
}

// checkNoDevices fails for device nodes other than whiteouts, and for attributes that steer overlay.
func checkNoDevices(t *testing.T, dir string) {
	t.Helper()
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return fmt.Errorf("no stat of %s", path)
		}
		if info.Mode()&os.ModeDevice != 0 && st.Rdev != 0 {
			t.Errorf("%s is a device", path)
		}
		if _, err := unix.Lgetxattr(path, "trusted.overlay.redirect", make([]byte, 64)); err == nil {
			t.Errorf("%s redirects", path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestQuota(t *testing.T) {
	require.Root(t)
	small := Limits{Bytes: 64 << 10, Entries: 8, Depth: 4, Names: 800, Xattrs: 100, Window: 1 << 20}
	many := make([]rt.Entry, 9)
	for i := range many {
		many[i] = rt.Entry{Name: fmt.Sprintf("f%d", i)}
	}
	dirs := make([]rt.Entry, 3)
	for i := range dirs {
		dirs[i] = rt.Entry{Name: fmt.Sprintf("%0200d/", i)}
	}
	cases := map[string]struct {
		entries []rt.Entry
		wantErr error
	}{
		"deep":             {entries: []rt.Entry{{Name: "a/b/c/d"}}},
		"too deep":         {entries: []rt.Entry{{Name: "a/b/c/d/e"}}, wantErr: errdefs.ErrInvalidArgument},
		"implied folders":  {entries: []rt.Entry{{Name: "a/b/c/d"}, {Name: "e/f/g/h"}, {Name: "i"}}, wantErr: errdefs.ErrOutOfRange},
		"names of folders": {entries: dirs, wantErr: errdefs.ErrOutOfRange},
		"names of links":   {entries: []rt.Entry{{Name: "l", Type: tar.TypeLink, Link: strings.Repeat("l/", 400)}}, wantErr: errdefs.ErrOutOfRange},
		"attributes":       {entries: []rt.Entry{{Name: "f", Xattrs: map[string]string{"user.x": strings.Repeat("x", 100)}}}, wantErr: errdefs.ErrOutOfRange},
		"fits":             {entries: []rt.Entry{{Name: "f", Body: strings.Repeat("x", 30<<10)}}},
		"too many bytes":   {entries: []rt.Entry{{Name: "f", Body: strings.Repeat("x", 65<<10)}}, wantErr: errdefs.ErrOutOfRange},
		"sum of bytes":     {entries: []rt.Entry{{Name: "f", Body: strings.Repeat("x", 40<<10)}, {Name: "g", Body: strings.Repeat("x", 40<<10)}}, wantErr: errdefs.ErrOutOfRange},
		"too many entries": {entries: many, wantErr: errdefs.ErrOutOfRange},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			_, _, err := apply(t, New(small), tc.entries...)
			if tc.wantErr == nil && err != nil || !errors.Is(err, tc.wantErr) {
				t.Fatalf("got %v, want %v", err, tc.wantErr)
			}
		})
	}
}

func TestSparseFileOfGiBs(t *testing.T) {
	require.Root(t)
	// A GNU sparse file of 8 GiB in PAX form: a map with one byte at the end, in a stream of a few KiB.
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	body := append([]byte("1\n8589934591\n1\n"), make([]byte, 512-15+1)...)
	hdr := &tar.Header{Name: "GNUSparseFile.0/f", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(body)), Format: tar.FormatPAX}
	if err := tw.WriteHeader(hdr); err != nil {
		t.Fatal(err)
	}
	if _, err := tw.Write(body); err != nil {
		t.Fatal(err)
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	stream := withPAX(buf.Bytes(), map[string]string{
		"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "f", "GNU.sparse.realsize": "8589934592",
	})
	if h, err := tar.NewReader(bytes.NewReader(stream)).Next(); err != nil || h.Size != 8589934592 {
		t.Fatalf("the test's own stream is %+v, %v", h, err)
	}
	// Its holes take no space, and what may be made of them has a limit of its own.
	dir := require.Tmpfs(t, 0, "size=1m")
	if _, _, err := New(DefaultLimits(), WithSpace(func(string) (int64, error) { return 1 << 20, nil })).Apply(t.Context(), dir, bytes.NewReader(stream)); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(dir, "f")); err != nil || info.Size() != 8<<30 {
		t.Errorf("file is %+v, %v", info, err)
	}
	if _, _, err := New(Limits{Sparse: 4 << 30}).Apply(t.Context(), t.TempDir(), bytes.NewReader(stream)); !errors.Is(err, errdefs.ErrOutOfRange) {
		t.Errorf("got %v", err)
	}
}

// withPAX puts an extended header before the first entry; the writer of archive/tar refuses these keys.
func withPAX(stream []byte, records map[string]string) []byte {
	var text strings.Builder
	for _, key := range []string{"GNU.sparse.major", "GNU.sparse.minor", "GNU.sparse.name", "GNU.sparse.realsize"} {
		line := " " + key + "=" + records[key] + "\n"
		n := len(line) + 2 // all lines have two digits of length
		fmt.Fprintf(&text, "%d%s", n, line)
	}
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	_ = tw.WriteHeader(&tar.Header{Name: "pax", Typeflag: tar.TypeReg, Size: int64(text.Len()), Format: tar.FormatUSTAR})
	_, _ = tw.Write([]byte(text.String()))
	_ = tw.Flush()
	raw := buf.Bytes()
	raw[156] = tar.TypeXHeader
	sum := 0
	copy(raw[148:156], "        ")
	for _, b := range raw[:512] {
		sum += int(b)
	}
	copy(raw[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return append(raw, stream...)
}

func TestSpaceRunsOut(t *testing.T) {
	require.Root(t)
	left := int64(6 << 20)
	u := New(DefaultLimits(), WithSpace(func(string) (int64, error) {
		left -= 3 << 20
		return left, nil
	}))
	var entries []rt.Entry
	for i := range 64 {
		entries = append(entries, rt.Entry{Name: fmt.Sprintf("f%d", i), Body: strings.Repeat("x", 1<<20)})
	}
	if _, _, err := apply(t, u, entries...); !errors.Is(err, errdefs.ErrResourceExhausted) {
		t.Fatalf("got %v", err)
	}
}

func TestFullFileSystem(t *testing.T) {
	dir := require.Tmpfs(t, 0, "size=1m")
	stream := rt.Tar(rt.Entry{Name: "f", Body: strings.Repeat("x", 2<<20)})
	_, _, err := New(DefaultLimits()).Apply(t.Context(), dir, bytes.NewReader(stream))
	if !errors.Is(err, errdefs.ErrResourceExhausted) || !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("got %v", err)
	}
}

func TestCancel(t *testing.T) {
	require.Root(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, err := New(DefaultLimits()).Apply(ctx, t.TempDir(), bytes.NewReader(rt.Tar(rt.Entry{Name: "f"})))
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
}

func TestDecompress(t *testing.T) {
	stream := rt.Tar(rt.Entry{Name: "f", Body: strings.Repeat("text ", 100_000)})
	cases := map[string]struct {
		raw     []byte
		as      mediatype.Compression
		wantErr error
	}{
		"plain":                 {raw: stream, as: mediatype.None},
		"gzip":                  {raw: rt.Pack(stream, rt.Gzip), as: mediatype.Gzip},
		"zstd":                  {raw: rt.Pack(stream, rt.Zstd), as: mediatype.Zstd},
		"two gzip members":      {raw: append(rt.Pack(stream[:1000], rt.Gzip), rt.Pack(stream[1000:], rt.Gzip)...), as: mediatype.Gzip},
		"two zstd frames":       {raw: append(rt.Pack(stream[:1000], rt.Zstd), rt.Pack(stream[1000:], rt.Zstd)...), as: mediatype.Zstd},
		"tar called gzip":       {raw: stream, as: mediatype.Gzip, wantErr: errdefs.ErrInvalidArgument},
		"tar called zstd":       {raw: stream, as: mediatype.Zstd, wantErr: errdefs.ErrInvalidArgument},
		"gzip cut":              {raw: rt.Pack(stream, rt.Gzip)[:500], as: mediatype.Gzip, wantErr: errdefs.ErrInvalidArgument},
		"zstd cut":              {raw: rt.Pack(stream, rt.Zstd)[:60], as: mediatype.Zstd, wantErr: errdefs.ErrInvalidArgument},
		"garbage after gzip":    {raw: append(rt.Pack(stream, rt.Gzip), "garbage"...), as: mediatype.Gzip, wantErr: errdefs.ErrInvalidArgument},
		"empty gzip":            {as: mediatype.Gzip, wantErr: io.EOF},
		"unknown compression":   {as: mediatype.Compression(7), wantErr: errdefs.ErrNotImplemented},
		"zstd window too large": {raw: []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8, 0x01, 0x00, 0x00}, as: mediatype.Zstd, wantErr: errdefs.ErrOutOfRange},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			r, err := New(DefaultLimits()).Decompress(bytes.NewReader(tc.raw), tc.as)
			var got []byte
			if err == nil {
				got, err = io.ReadAll(r)
				r.Close()
			}
			if tc.wantErr != nil {
				if !errors.Is(err, tc.wantErr) {
					t.Fatalf("got %v, want %v", err, tc.wantErr)
				}
				return
			}
			if err != nil || !bytes.Equal(got, stream) {
				t.Fatalf("got %d bytes, %v", len(got), err)
			}
		})
	}
}

func FuzzApply(f *testing.F) {
	require.Root(f)
	f.Add(rt.Tar(rt.Entry{Name: "a/b", Body: "x"}, rt.Entry{Name: "a/.wh.c"}, rt.Entry{Name: "l", Type: tar.TypeSymlink, Link: "../.."}))
	f.Add(rt.Tar(rt.Entry{Name: "h", Type: tar.TypeLink, Link: "below"}, rt.Entry{Name: "d/g", Type: tar.TypeLink, Link: "h", Mode: 0o4711}))
	f.Add(rt.Tar(rt.Entry{Name: "d/.wh..wh..opq"}, rt.Entry{Name: "h", Type: tar.TypeLink, Link: "../victim"}))
	f.Fuzz(func(t *testing.T, stream []byte) {
		parent := t.TempDir()
		dir := filepath.Join(parent, "layer")
		for _, d := range []string{dir, filepath.Join(parent, "dir")} {
			if err := os.Mkdir(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(parent, "victim"), []byte("v"), 0o644); err != nil {
			t.Fatal(err)
		}
		limits := Limits{Bytes: 1 << 20, Entries: 1000, Xattrs: 4096, Window: 1 << 20}
		lower := filepath.Join(parent, "dir")
		if err := os.WriteFile(filepath.Join(lower, "below"), []byte("b"), 0o644); err != nil {
			t.Fatal(err)
		}
		u := New(limits)
		_, deferred, err := u.Apply(t.Context(), dir, bytes.NewReader(stream))
		if err == nil {
			_, err = u.Complete(t.Context(), dir, deferred, []string{lower})
		}
		checkUntouched(t, parent)
		checkNoDevices(t, dir)
		checkClass(t, err)
	})
}
