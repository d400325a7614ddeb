package guestimage

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

const (
	arMagic      = "!<arch>\n"
	arHeaderSize = 60
)

// readDeb calls each for every regular file of a Debian package, with its path without leading slash. Content is read
// from the reader it is given, or skipped.
func readDeb(r io.Reader, each func(name string, size int64, content io.Reader) error) error {
	in := bufio.NewReader(r)
	magic := make([]byte, len(arMagic))
	if _, err := io.ReadFull(in, magic); err != nil || string(magic) != arMagic {
		return fmt.Errorf("file is not a Debian package: %w", errdefs.ErrInvalidArgument)
	}
	for {
		name, size, err := nextMember(in)
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("file is a Debian package without a data member: %w", errdefs.ErrInvalidArgument)
		}
		if err != nil {
			return fmt.Errorf("read Debian package: %w", err)
		}
		body := io.LimitReader(in, size)
		if strings.HasPrefix(name, "data.tar") {
			return readDataTar(name, body, each)
		}
		// Members start at even offsets.
		if _, err := io.CopyN(io.Discard, in, size+size%2); err != nil {
			return fmt.Errorf("read Debian package member %s: %w", name, err)
		}
	}
}

// nextMember reads an ar header: a name of 16 bytes, and at byte 48 the decimal size in 10.
func nextMember(in io.Reader) (string, int64, error) {
	var header [arHeaderSize]byte
	if _, err := io.ReadFull(in, header[:]); err != nil {
		return "", 0, err
	}
	size, err := strconv.ParseInt(strings.TrimSpace(string(header[48:58])), 10, 64)
	if err != nil || size < 0 {
		return "", 0, fmt.Errorf("member size is no number: %w", errdefs.ErrInvalidArgument)
	}
	return strings.TrimRight(string(header[:16]), " /"), size, nil
}

func readDataTar(name string, body io.Reader, each func(string, int64, io.Reader) error) error {
	plain, err := decompressor(strings.TrimPrefix(path.Ext(name), "."), body)
	if err != nil {
		return fmt.Errorf("read Debian package member %s: %w", name, err)
	}
	files := tar.NewReader(plain)
	for {
		header, err := files.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read Debian package member %s: %w", name, err)
		}
		if header.Typeflag != tar.TypeReg {
			continue
		}
		clean := strings.TrimPrefix(path.Clean("/"+header.Name), "/")
		if err := each(clean, header.Size, files); err != nil {
			return fmt.Errorf("read %s: %w", clean, err)
		}
	}
}

// decompressor undoes the compression that a file name's extension stands for.
func decompressor(extension string, r io.Reader) (io.Reader, error) {
	switch extension {
	case "xz":
		return xz.NewReader(r)
	case "zst":
		return zstd.NewReader(r, zstd.WithDecoderConcurrency(1))
	case "gz":
		return gzip.NewReader(r)
	case "tar", "ko":
		return r, nil
	}
	return nil, fmt.Errorf("compression %q is not supported: %w", extension, errdefs.ErrNotImplemented)
}

// expand decompresses data and refuses a result of more than limit bytes.
func expand(extension string, data []byte, limit int64) ([]byte, error) {
	r, err := decompressor(extension, bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	return readAll(r, limit)
}

// readAll reads to the end and refuses more than limit bytes.
func readAll(r io.Reader, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("more than %d bytes: %w", limit, errdefs.ErrOutOfRange)
	}
	return data, nil
}
