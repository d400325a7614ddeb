package guestimage

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/containerd/errdefs"
)

// Offsets in the x86 boot sector's header, from the kernel's boot protocol document.
const (
	offSetupSects    = 0x1f1
	offMagic         = 0x202
	offVersion       = 0x206
	offPayloadOffset = 0x248
	offPayloadLength = 0x24c
	setupHeaderEnd   = 0x250

	sectorSize = 512
	// minVersion is the first protocol that says where the payload lies.
	minVersion = 0x0208
)

// maxVmlinux bounds the kernel once decompressed, in bytes.
const maxVmlinux = 512 << 20

// compressions are the payload formats that the builder can undo, by their first bytes.
var compressions = []struct{ extension, magic string }{
	{"zst", "\x28\xb5\x2f\xfd"},
	{"xz", "\xfd7zXZ\x00"},
	{"gz", "\x1f\x8b"},
}

// vmlinux takes the kernel proper, an ELF file, out of a bzImage.
func vmlinux(bzImage []byte) ([]byte, error) {
	payload, err := payload(bzImage)
	if err != nil {
		return nil, err
	}
	for _, c := range compressions {
		if !bytes.HasPrefix(payload, []byte(c.magic)) {
			continue
		}
		// The kernel's build appends the size to the compressed stream; it is also a check on what we decompress.
		body, tail := payload[:len(payload)-4], payload[len(payload)-4:]
		if c.extension == "gz" {
			body = payload // gzip's own trailer is that very number
		}
		data, err := expand(c.extension, body, maxVmlinux)
		if err != nil {
			return nil, fmt.Errorf("decompress kernel (%s): %w", c.extension, err)
		}
		if want := binary.LittleEndian.Uint32(tail); uint32(len(data)) != want {
			return nil, fmt.Errorf("decompressed kernel has %d bytes instead of %d: %w", len(data), want, errdefs.ErrDataLoss)
		}
		return data, nil
	}
	return nil, fmt.Errorf("kernel compression with magic % x is not supported: use a kernel packed with zstd, xz or gzip: %w",
		payload[:4], errdefs.ErrNotImplemented)
}

// payload returns the compressed part that the boot header points to.
func payload(image []byte) ([]byte, error) {
	if len(image) < setupHeaderEnd || string(image[offMagic:offMagic+4]) != "HdrS" {
		return nil, fmt.Errorf("kernel is not an x86 bzImage: %w", errdefs.ErrInvalidArgument)
	}
	if version := binary.LittleEndian.Uint16(image[offVersion:]); version < minVersion {
		return nil, fmt.Errorf("kernel's boot protocol %#x is older than %#x: %w", version, minVersion, errdefs.ErrInvalidArgument)
	}
	sectors := uint64(image[offSetupSects])
	if sectors == 0 {
		sectors = 4 // what zero stands for
	}
	start := (sectors+1)*sectorSize + uint64(binary.LittleEndian.Uint32(image[offPayloadOffset:]))
	length := uint64(binary.LittleEndian.Uint32(image[offPayloadLength:]))
	if length < 8 || start+length > uint64(len(image)) {
		return nil, fmt.Errorf("kernel's payload of %d bytes at %d lies outside the file of %d: %w",
			length, start, len(image), errdefs.ErrInvalidArgument)
	}
	return image[start : start+length], nil
}
