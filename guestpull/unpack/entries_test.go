package unpack

import (
	"archive/tar"
	"bytes"
	"io"
	"maps"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// reader is what entries and tar.Reader have in common.
type reader interface {
	Next() (*tar.Header, error)
	io.Reader
}

// outcome goes through a stream and returns all that there is to see. It reads no more than most bytes of each entry.
func outcome(r reader, most int64) (list []tar.Header, contents [][]byte, errs []error) {
	for {
		hdr, err := r.Next()
		if err != nil {
			return list, contents, append(errs, err)
		}
		// What nobody uses.
		kept := *hdr
		kept.Uname, kept.Gname, kept.Format, kept.Devmajor, kept.Devminor = "", "", 0, 0, 0
		if hdr.Typeflag == tar.TypeChar || hdr.Typeflag == tar.TypeBlock {
			kept.Devmajor, kept.Devminor = hdr.Devmajor, hdr.Devminor
		}
		if hdr.Typeflag != tar.TypeSymlink && hdr.Typeflag != tar.TypeLink {
			kept.Linkname = ""
		}
		kept.Xattrs = nil //nolint:staticcheck // the same as the records
		content, err := io.ReadAll(io.LimitReader(r, most))
		list, contents, errs = append(list, kept), append(contents, content), append(errs, err)
		if err != nil {
			return list, contents, errs
		}
	}
}

func same(t *testing.T, stream []byte, most int64) {
	t.Helper()
	got, gotContents, gotErrs := outcome(newEntries(bytes.NewReader(stream)), most)
	want, wantContents, wantErrs := outcome(tar.NewReader(bytes.NewReader(stream)), most)
	if len(got) != len(want) || len(gotErrs) != len(wantErrs) {
		t.Fatalf("%d entries, %v; tar.Reader gives %d, %v", len(got), gotErrs, len(want), wantErrs)
	}
	for i := range want {
		g, w := got[i], want[i]
		if !maps.Equal(g.PAXRecords, w.PAXRecords) {
			t.Errorf("entry %d: records %v, want %v", i, g.PAXRecords, w.PAXRecords)
		}
		if g.Name != w.Name || g.Linkname != w.Linkname || g.Typeflag != w.Typeflag || g.Size != w.Size || g.Mode != w.Mode || g.Uid != w.Uid || g.Gid != w.Gid ||
			!g.ModTime.Equal(w.ModTime) || !g.AccessTime.Equal(w.AccessTime) || g.Devmajor != w.Devmajor || g.Devminor != w.Devminor {
			t.Errorf("entry %d: %+v, want %+v", i, g, w)
		}
		if !bytes.Equal(gotContents[i], wantContents[i]) {
			t.Errorf("entry %d: content %.100q, want %.100q", i, gotContents[i], wantContents[i])
		}
	}
	for i := range wantErrs {
		if (gotErrs[i] == nil) != (wantErrs[i] == nil) || wantErrs[i] != nil && gotErrs[i].Error() != wantErrs[i].Error() {
			t.Errorf("error %d: %v, want %v", i, gotErrs[i], wantErrs[i])
		}
	}
}

// variety is a stream with what there is in layers.
func variety(tb testing.TB) []byte {
	tb.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	at := time.Unix(1700000000, 0)
	for _, hdr := range []tar.Header{
		{Typeflag: tar.TypeDir, Name: "dir/", Mode: 0o755},
		{Typeflag: tar.TypeReg, Name: "dir/file", Mode: 0o4755, Uid: 1000, Gid: 7, Size: 700},
		{Typeflag: tar.TypeReg, Name: "dir/empty", Mode: 0o644},
		{Typeflag: tar.TypeReg, Name: "dir/block", Mode: 0o644, Size: 512},
		{Typeflag: tar.TypeReg, Name: strings.Repeat("long/", 25) + "prefix", Mode: 0o644, Size: 3},
		{Typeflag: tar.TypeReg, Name: strings.Repeat("very-long", 30), Mode: 0o644, Size: 5},
		{Typeflag: tar.TypeReg, Name: "after", Mode: 0o644, Size: 6},
		{Typeflag: tar.TypeSymlink, Name: "symlink", Linkname: "../to", Mode: 0o777},
		{Typeflag: tar.TypeLink, Name: "hard", Linkname: "dir/file"},
		{Typeflag: tar.TypeReg, Name: "älter", Mode: 0o644, Size: 1},
		{Typeflag: tar.TypeReg, Name: "capable", Mode: 0o755, Size: 9, PAXRecords: map[string]string{"SCHILY.xattr.user.x": "y"}},
		{Typeflag: tar.TypeReg, Name: "exact", Mode: 0o644, Size: 2, ModTime: time.Unix(1700000000, 5), Format: tar.FormatPAX},
		{Typeflag: tar.TypeReg, Name: "gnu", Mode: 0o644, Size: 513, Format: tar.FormatGNU},
		{Typeflag: tar.TypeReg, Name: "gnu with times", Mode: 0o644, Size: 1, AccessTime: at, ChangeTime: at, Format: tar.FormatGNU},
		{Typeflag: tar.TypeChar, Name: "null", Mode: 0o666, Devmajor: 1, Devminor: 3},
		{Typeflag: tar.TypeFifo, Name: "pipe", Mode: 0o600},
		{Typeflag: tar.TypeReg, Name: "large id", Mode: 0o644, Uid: 1 << 22, Size: 4},
		{Typeflag: tar.TypeReg, Name: "last", Mode: 0o600, Size: 100},
	} {
		if hdr.ModTime.IsZero() {
			hdr.ModTime = at
		}
		if err := w.WriteHeader(&hdr); err != nil {
			tb.Fatalf("%s: %v", hdr.Name, err)
		}
		if _, err := w.Write(bytes.Repeat([]byte{'c'}, int(hdr.Size))); err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return buf.Bytes()
}

func TestEntries(t *testing.T) {
	stream := variety(t)
	for _, most := range []int64{1 << 20, 600, 1, 0} {
		same(t, stream, most)
	}
	// A stream may be cut anywhere.
	for n := 0; n < len(stream); n += 37 {
		same(t, stream[:n], 1<<20)
		same(t, stream[:n], 1)
	}
	// Bytes behind the end are not its own.
	same(t, append(bytes.Clone(stream), stream...), 1<<20)
	if e := newEntries(iotest.OneByteReader(bytes.NewReader(stream))); true {
		list, _, errs := outcome(e, 1<<20)
		if len(list) != 18 || errs[len(errs)-1] != io.EOF { //nolint:errorlint // a wrapped one is no end
			t.Errorf("byte by byte: %d entries, %v", len(list), errs)
		}
	}
}

// TestEntriesAreSimple wants the shortcut to be taken where it is meant for.
func TestEntriesAreSimple(t *testing.T) {
	e, fast := newEntries(bytes.NewReader(variety(t))), map[string]bool{}
	for {
		hdr, err := e.Next()
		if err != nil {
			break
		}
		fast[hdr.Name] = e.slow == nil
	}
	for name, want := range map[string]bool{
		"dir/": true, "dir/file": true, "after": true, "symlink": true, "hard": true, "gnu": true, "last": true,
		"capable": false, "exact": false, "gnu with times": false, "null": false, "large id": false,
	} {
		if fast[name] != want {
			t.Errorf("%s: taken by the shortcut is %t", name, !want)
		}
	}
}

func FuzzEntries(f *testing.F) {
	stream := variety(f)
	f.Add(stream, 0, byte(0), int64(1<<20))
	f.Add(stream[:1024], 124, byte('9'), int64(1))
	f.Add(stream, 1024+156, byte('S'), int64(5))
	f.Fuzz(func(t *testing.T, stream []byte, at int, with byte, most int64) {
		if len(stream) > 64<<10 || most < 0 || most > 1<<20 {
			return
		}
		stream = bytes.Clone(stream)
		if at >= 0 && at < len(stream) {
			stream[at] = with
			if block := stream[at/tarBlock*tarBlock:]; len(block) >= tarBlock {
				mend((*[tarBlock]byte)(block))
			}
		}
		same(t, stream, most)
	})
}

// mend makes the checksum of a header right, without which no reader looks further.
func mend(b *[tarBlock]byte) {
	sum := checksum(b)
	for i := 5; i >= 0; i-- {
		b[tarSum+i] = '0' + byte(sum&7)
		sum >>= 3
	}
	b[tarSum+6], b[tarSum+7] = 0, ' '
}
