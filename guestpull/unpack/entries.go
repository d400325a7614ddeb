package unpack

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"time"
)

const (
	tarBlock = 512
	// Where fields of a header begin (POSIX.1-1988 ustar).
	tarName, tarMode, tarUID, tarGID, tarSize, tarMTime, tarSum, tarType, tarLink = 0, 100, 108, 116, 124, 136, 148, 156, 157
	tarMagic, tarMajor, tarMinor, tarPrefix, tarRest                              = 257, 329, 337, 345, 500
)

// entries goes through a tar stream as tar.Reader does. Headers that are as simple as most are, it reads itself in a fraction
// of the time; all others, and the end, it leaves to a tar.Reader, so that this alone says what a strange header means.
type entries struct {
	r    io.Reader
	slow *tar.Reader // has the current entry, unless nil
	left int64       // bytes of content that follow, unless slow knows better
	pad  int64       // bytes behind them, to the next block
	blk  [tarBlock]byte
	hdr  tar.Header
}

func newEntries(r io.Reader) *entries { return &entries{r: r} }

// Next returns the next header, which is good until the next call, and io.EOF at the end.
func (e *entries) Next() (*tar.Header, error) {
	if e.left < 0 {
		return e.follow()
	}
	if _, err := io.CopyN(io.Discard, e.r, e.left); err != nil {
		return nil, noEOF(err)
	}
	e.left = 0
	// A stream may end without its last padding.
	if err := e.full(e.blk[:e.pad]); err != nil {
		return nil, err
	}
	e.pad, e.slow = 0, nil
	if n, err := io.ReadFull(e.r, e.blk[:]); err != nil {
		if n == 0 {
			return nil, io.EOF
		}
		return nil, noEOF(err)
	}
	if e.simple() {
		return &e.hdr, nil
	}
	e.slow = tar.NewReader(io.MultiReader(bytes.NewReader(e.blk[:]), e.r))
	return e.follow()
}

// follow takes the next entry from slow.
func (e *entries) follow() (*tar.Header, error) {
	hdr, err := e.slow.Next()
	if err != nil {
		return nil, err
	}
	switch {
	case hdr.Typeflag == tar.TypeReg && !isSparse(hdr):
		e.expect(hdr.Size)
	default:
		e.left = -1 // how much lies in the stream, only slow knows
	}
	return hdr, nil
}

// expect says what follows a header.
func (e *entries) expect(size int64) {
	e.left, e.pad = size, -size&(tarBlock-1)
}

// Read reads the content of the current entry.
func (e *entries) Read(p []byte) (int, error) {
	if e.left < 0 {
		return e.slow.Read(p)
	}
	if e.left == 0 {
		return 0, io.EOF
	}
	n, err := e.r.Read(p[:min(int64(len(p)), e.left)])
	if e.left -= int64(n); e.left > 0 {
		err = noEOF(err)
	}
	return n, err
}

// full fills p. The end of the stream is io.EOF wherever it comes.
func (e *entries) full(p []byte) error {
	_, err := io.ReadFull(e.r, p)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return io.EOF
	}
	return err
}

// noEOF is for places where the stream must not end.
func noEOF(err error) error {
	if err == io.EOF { //nolint:errorlint // a wrapped one is another error
		return io.ErrUnexpectedEOF
	}
	return err
}

// simple reads the block as a header of a file, directory or link that has nothing out of the ordinary: a good checksum,
// full octal numbers, and no other header before or behind it that would change what it says.
func (e *entries) simple() bool {
	b := &e.blk
	var ok [8]bool
	var mode, uid, gid, size, mtime, sum int64
	mode, ok[0] = octal(b[tarMode:tarUID])
	uid, ok[1] = octal(b[tarUID:tarGID])
	gid, ok[2] = octal(b[tarGID:tarSize])
	size, ok[3] = octal(b[tarSize:tarMTime])
	mtime, ok[4] = octal(b[tarMTime:tarSum])
	sum, ok[5] = octal(b[tarSum : tarType-1]) // a zero and a space end it
	ok[6], ok[7] = device(b[tarMajor:tarMinor]), device(b[tarMinor:tarPrefix])
	if ok != [8]bool{true, true, true, true, true, true, true, true} || sum != checksum(b) {
		return false
	}
	name := cString(b[tarName:tarMode])
	switch string(b[tarMagic : tarMagic+8]) {
	case "ustar\x0000":
		if string(b[tarBlock-4:]) == "tar\x00" {
			return false
		}
		if prefix := cString(b[tarPrefix:tarRest]); prefix != "" {
			name = prefix + "/" + name
		}
	case "ustar  \x00":
		if b[tarPrefix] != 0 || !bytes.Equal(b[tarPrefix:tarBlock], zeroes[:tarBlock-tarPrefix]) {
			return false
		}
	default:
		return false
	}
	link := ""
	switch kind := b[tarType]; kind {
	case tar.TypeReg:
	case tar.TypeDir, tar.TypeSymlink, tar.TypeLink:
		if size != 0 {
			return false
		}
		link = cString(b[tarLink:tarMagic])
	default:
		return false
	}
	e.hdr = tar.Header{
		Typeflag: b[tarType], Name: name, Linkname: link, Size: size, Mode: mode, Uid: int(uid), Gid: int(gid), ModTime: time.Unix(mtime, 0),
	}
	e.expect(size)
	return true
}

// octal reads a field that is full of digits up to its end, which is a zero or a space.
func octal(field []byte) (n int64, ok bool) {
	last := len(field) - 1
	for _, c := range field[:last] {
		if c < '0' || c > '7' {
			return 0, false
		}
		n = n<<3 | int64(c-'0')
	}
	return n, field[last] == 0 || field[last] == ' '
}

// device reports whether a field is a number or is not used.
func device(field []byte) bool {
	if field[0] == 0 {
		return bytes.Equal(field, zeroes[:len(field)])
	}
	_, ok := octal(field)
	return ok
}

// cString is a field up to its first zero.
func cString(field []byte) string {
	if i := bytes.IndexByte(field, 0); i >= 0 {
		field = field[:i]
	}
	return string(field)
}

// checksum adds up all bytes of a header, those of the checksum itself taken for spaces.
func checksum(b *[tarBlock]byte) int64 {
	const lanes = 0x00ff00ff00ff00ff // four sums in a word, each of at most 128 bytes
	var sums uint64
	for i := 0; i < tarBlock; i += 8 {
		word := binary.LittleEndian.Uint64(b[i:])
		sums += word&lanes + word>>8&lanes
	}
	total := int64(sums&0xffff + sums>>16&0xffff + sums>>32&0xffff + sums>>48)
	for _, c := range b[tarSum:tarType] {
		total += ' ' - int64(c)
	}
	return total
}
