package unpack

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// holeSize is what is looked at for being all zero, in bytes: smaller holes save less than they cost.
const holeSize = 16 << 10

var zeroes [holeSize]byte

// sizedFirst is the least size of files, in bytes, that get their size before their content.
const sizedFirst = 256 << 10

// reserve tells the file system how large a file will be. One in memory then takes large pages for it, which are several
// times as fast as small ones. Not so for sparse files, of which each little piece would take a large page.
func reserve(fd int, hdr *tar.Header) error {
	if hdr.Size < sizedFirst || isSparse(hdr) {
		return nil
	}
	if err := unix.Ftruncate(fd, hdr.Size); err != nil {
		return fmt.Errorf("write file: %w", err)
	}
	return nil
}

// content copies exactly what the tar reader has for a file, or for a part of one that begins at an offset. Long runs of
// zeroes become holes, which take no space.
func (w *writer) content(ctx context.Context, fd int, at, size int64, body io.Reader) error {
	end, hole := at+size, false
	for at < end {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := io.ReadFull(body, w.buf[:min(end-at, int64(len(w.buf)))])
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		if hole, err = w.calls.writeData(fd, at, w.buf[:n]); err != nil {
			return err
		}
		at += int64(n)
	}
	if !hole {
		return nil
	}
	if err := unix.Ftruncate(fd, end); err != nil {
		return fmt.Errorf("write file: %w", err)
	}
	return nil
}

// writeData writes what is not zero, and returns whether the last part was left out.
func (c calls) writeData(fd int, at int64, p []byte) (hole bool, err error) {
	for len(p) > 0 {
		zero := run(p, true)
		at += int64(zero)
		if p = p[zero:]; len(p) == 0 {
			return true, nil
		}
		data := run(p, false)
		for rest := p[:data]; len(rest) > 0; {
			n, err := c.pwrite(fd, rest, at)
			if err != nil && !errors.Is(err, unix.EINTR) {
				return false, fmt.Errorf("write file: %w", err)
			}
			rest, at = rest[max(n, 0):], at+int64(max(n, 0))
		}
		p = p[data:]
	}
	return false, nil
}

// run is how many bytes at the beginning of p are zero, or are not, in steps of holeSize.
func run(p []byte, zero bool) int {
	n := 0
	for n < len(p) {
		part := p[n:min(n+holeSize, len(p))]
		if bytes.Equal(part, zeroes[:len(part)]) != zero {
			break
		}
		n += len(part)
	}
	return n
}
