package ovmf

import (
	"encoding/binary"
	"fmt"

	"github.com/containerd/errdefs"
)

// PageSize is the size of a page in bytes; images and sections are made of pages.
const PageSize = 4096

// fourGiB is where firmware ends in the guest's memory.
const fourGiB = 1 << 32

// MaxImage bounds an image in bytes; QEMU maps at most 8 MiB below 4 GiB for it, TDX builds have up to 16.
const MaxImage = 64 << 20

// guid is in the mixed byte order of UEFI.
type guid [16]byte

// The entries of OVMF's table of GUIDs (edk2, OvmfPkg/ResetVector/Ia16/ResetVectorVtf0.asm).
var (
	guidFooter      = guid{0xde, 0x82, 0xb5, 0x96, 0xb2, 0x1f, 0xf7, 0x45, 0xba, 0xea, 0xa3, 0x66, 0xc5, 0x5a, 0x08, 0x2d}
	guidResetBlock  = guid{0xde, 0x71, 0xf7, 0x00, 0x7e, 0x1a, 0xcb, 0x4f, 0x89, 0x0e, 0x68, 0xc7, 0x7e, 0x2f, 0xb4, 0x4e}
	guidHashTable   = guid{0x1f, 0x37, 0x55, 0x72, 0x3b, 0x3a, 0x04, 0x4b, 0x92, 0x7b, 0x1d, 0xa6, 0xef, 0xa8, 0xd4, 0x54}
	guidSEVMetadata = guid{0x66, 0x65, 0x88, 0xdc, 0x4a, 0x98, 0x98, 0x47, 0xa7, 0x5e, 0x55, 0x85, 0xa7, 0xbf, 0x67, 0xcc}
	guidTDXMetadata = guid{0x35, 0x65, 0x7a, 0xe4, 0x4a, 0x98, 0x98, 0x47, 0x86, 0x5e, 0x46, 0x85, 0xa7, 0xbf, 0x8e, 0xc2}
)

// Image is a firmware image with its table of GUIDs.
type Image struct {
	raw   []byte
	table map[guid][]byte
}

// Parse reads the table at the end of an image, which the Image keeps.
func Parse(raw []byte) (*Image, error) {
	// The table ends 32 bytes before the image does; each entry is data, its size with this header, and its GUID, read backwards.
	const tail, header = 32, 2 + 16
	bad := func(reason string) (*Image, error) {
		return nil, fmt.Errorf("firmware %s: it is no OVMF build for confidential guests: %w", reason, errdefs.ErrInvalidArgument)
	}
	if len(raw) < tail+header || len(raw)%PageSize != 0 || len(raw) > MaxImage {
		return bad(fmt.Sprintf("has a size of %d bytes", len(raw)))
	}
	f := &Image{raw: raw, table: map[guid][]byte{}}
	rest := raw[:len(raw)-tail]
	size, id, ok := tableEntry(rest)
	if !ok || id != guidFooter || size > len(rest) {
		return bad("has no table of GUIDs")
	}
	for entries := rest[len(rest)-size : len(rest)-header]; len(entries) > 0; {
		size, id, ok := tableEntry(entries)
		if !ok || size > len(entries) {
			return bad("has a damaged table of GUIDs")
		}
		if _, twice := f.table[id]; twice {
			return bad("has an entry twice in its table of GUIDs")
		}
		f.table[id] = entries[len(entries)-size : len(entries)-header]
		entries = entries[:len(entries)-size]
	}
	return f, nil
}

// tableEntry reads the header at the end of entries.
func tableEntry(entries []byte) (size int, id guid, ok bool) {
	if len(entries) < 18 {
		return 0, id, false
	}
	header := entries[len(entries)-18:]
	copy(id[:], header[2:])
	size = int(binary.LittleEndian.Uint16(header))
	return size, id, size >= 18
}

// value returns the number at the begin of an entry.
func (f *Image) value(id guid) (uint32, bool) {
	entry := f.table[id]
	if len(entry) < 4 {
		return 0, false
	}
	return binary.LittleEndian.Uint32(entry), true
}

// fromEnd returns the image from offset bytes before its end, where an entry says that something lies.
func (f *Image) fromEnd(id guid) ([]byte, bool) {
	offset, ok := f.value(id)
	if !ok || uint64(offset) > uint64(len(f.raw)) {
		return nil, false
	}
	return f.raw[len(f.raw)-int(offset):], true
}

// Base is the guest's address at which the image begins.
func (f *Image) Base() uint64 { return fourGiB - uint64(len(f.raw)) }

// ResetVector is the guest's address at which processors beside the first start under SEV-ES and SNP; false when the image says none.
func (f *Image) ResetVector() (uint32, bool) { return f.value(guidResetBlock) }

// HashTable is the guest's address at which the hashes of kernel, initrd and command line are to be put; false when there is no place.
func (f *Image) HashTable() (uint32, bool) {
	address, ok := f.value(guidHashTable)
	return address, ok && address != 0
}
