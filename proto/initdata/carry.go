package initdata

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
)

// Annotation is the pod annotation that carries the text from the user to the shim.
const Annotation = "io.katacontainers.config.hypervisor.cc_init_data"

// The disk that carries the text from the shim to the guest: magic, little-endian length of the gzip form, gzip form, padding.
const (
	diskMagic  = "initdata"
	diskHeader = len(diskMagic) + 8
	sectorSize = 512
)

// EncodeAnnotation returns base64(gzip(text)). The text is parsed strictly first, so that a fault shows where it can be mended.
func EncodeAnnotation(raw []byte) (string, error) {
	packed, err := pack(raw)
	if err != nil {
		return "", err
	}
	return base64.StdEncoding.EncodeToString(packed), nil
}

// DecodeAnnotation undoes EncodeAnnotation, with the text limited to MaxSize. It does not parse the text.
func DecodeAnnotation(value string) ([]byte, error) {
	if base64.StdEncoding.DecodedLen(len(value)) > MaxSize {
		return nil, fmt.Errorf("initdata annotation of %d bytes is larger than the limit of %d: %w", len(value), MaxSize, errdefs.ErrInvalidArgument)
	}
	packed, err := base64.StdEncoding.DecodeString(value)
	if err != nil {
		return nil, fmt.Errorf("initdata annotation is not base64: %w", errdefs.ErrInvalidArgument)
	}
	return unpack(packed)
}

// EncodeDisk returns the disk image, a whole number of 512-byte sectors. The text is parsed strictly first.
func EncodeDisk(raw []byte) ([]byte, error) {
	packed, err := pack(raw)
	if err != nil {
		return nil, err
	}
	size := (diskHeader + len(packed) + sectorSize - 1) / sectorSize * sectorSize
	disk := make([]byte, 0, size)
	disk = append(disk, diskMagic...)
	disk = binary.LittleEndian.AppendUint64(disk, uint64(len(packed)))
	disk = append(disk, packed...)
	return disk[:size], nil
}

// DecodeDisk reads the text from a disk. A disk without the magic is NotFound, so that a guest can look at the next one; a damaged one
// is InvalidArgument; what reading the disk returns is passed on. Not more than MaxSize and a header are read.
func DecodeDisk(r io.Reader) ([]byte, error) {
	header := make([]byte, diskHeader)
	if _, err := io.ReadFull(r, header); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, fmt.Errorf("disk is too small for initdata: %w", errdefs.ErrNotFound)
		}
		return nil, fmt.Errorf("read initdata disk: %w", err)
	}
	if string(header[:len(diskMagic)]) != diskMagic {
		return nil, fmt.Errorf("disk carries no initdata: %w", errdefs.ErrNotFound)
	}
	size := binary.LittleEndian.Uint64(header[len(diskMagic):])
	if size > MaxSize {
		return nil, fmt.Errorf("initdata disk claims %d bytes, more than the limit of %d: %w", size, MaxSize, errdefs.ErrInvalidArgument)
	}
	packed := make([]byte, size)
	if _, err := io.ReadFull(r, packed); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, fmt.Errorf("initdata disk ends before the %d bytes that it claims: %w", size, errdefs.ErrInvalidArgument)
		}
		return nil, fmt.Errorf("read initdata disk: %w", err)
	}
	return unpack(packed)
}

// Unwrap returns the text from whichever form it is in: the text itself, an annotation's value or a disk image.
func Unwrap(form []byte) ([]byte, error) {
	if bytes.HasPrefix(form, []byte(diskMagic)) && len(form)%sectorSize == 0 {
		return DecodeDisk(bytes.NewReader(form))
	}
	if raw, err := DecodeAnnotation(string(bytes.TrimSpace(form))); err == nil {
		return raw, nil
	}
	if _, err := Parse(form); err != nil {
		return nil, err
	}
	return form, nil
}

func pack(raw []byte) ([]byte, error) {
	if _, err := Parse(raw); err != nil {
		return nil, err
	}
	var out bytes.Buffer
	zw, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		return nil, fmt.Errorf("compress initdata: %w", err)
	}
	if _, err := zw.Write(raw); err != nil {
		return nil, fmt.Errorf("compress initdata: %w", err)
	}
	if err := zw.Close(); err != nil {
		return nil, fmt.Errorf("compress initdata: %w", err)
	}
	if out.Len() > MaxSize {
		return nil, fmt.Errorf("compressed initdata of %d bytes is larger than the limit of %d: %w", out.Len(), MaxSize, errdefs.ErrInvalidArgument)
	}
	return out.Bytes(), nil
}

// unpack decompresses exactly one gzip member of at most MaxSize.
func unpack(packed []byte) ([]byte, error) {
	bad := func(reason string) ([]byte, error) {
		return nil, fmt.Errorf("initdata %s: %w", reason, errdefs.ErrInvalidArgument)
	}
	rest := bytes.NewReader(packed)
	zr, err := gzip.NewReader(rest)
	if err != nil {
		return bad("is not gzip")
	}
	zr.Multistream(false)
	raw, err := io.ReadAll(io.LimitReader(zr, MaxSize+1))
	if err != nil {
		return bad("has damaged gzip data")
	}
	if len(raw) > MaxSize {
		return bad(fmt.Sprintf("unpacks to more than the limit of %d bytes", MaxSize))
	}
	if rest.Len() != 0 {
		return bad("has data after its gzip member")
	}
	return raw, nil
}
