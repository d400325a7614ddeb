// Package ovmftest has firmware images for tests.
package ovmftest

import (
	"bytes"
	_ "embed" // the images
	"encoding/binary"
)

//go:embed ovmf_AmdSev_suffix.bin
var amdSev []byte

//go:embed ovmf_OvmfX64_suffix.bin
var x64 []byte

// AmdSev is the end of an image that SNP guests can start from, with hashes of their kernel.
func AmdSev() []byte { return bytes.Clone(amdSev) }

// X64 is the end of an image that SNP guests can start from, though with nothing about their kernel.
func X64() []byte { return bytes.Clone(x64) }

const (
	pageSize = 4096
	fourGiB  = 1 << 32
)

// TDX builds an image of 8 pages with the sections of a TDX build of OVMF: a volume, its variables, and memory. edit, unless nil,
// changes its metadata.
func TDX(edit func(metadata []byte)) []byte {
	const pages, tail, header = 8, 32, 18
	image := make([]byte, pages*pageSize)
	for i := range image {
		image[i] = byte(i * 7 >> 3)
	}
	metadata := tdxMetadata()
	if edit != nil {
		edit(metadata)
	}
	const fromEnd = 1024
	copy(image[len(image)-fromEnd:], metadata)
	copy(image[len(image)-fromEnd-16:], []byte{0xf3, 0xf9, 0xea, 0xe9, 0x8e, 0x16, 0xd5, 0x44, 0xa8, 0xeb, 0x7f, 0x4d, 0x87, 0x38, 0xf6, 0xae})
	table := binary.LittleEndian.AppendUint32(nil, fromEnd)
	table = binary.LittleEndian.AppendUint16(table, 4+header)
	table = append(table, 0x35, 0x65, 0x7a, 0xe4, 0x4a, 0x98, 0x98, 0x47, 0x86, 0x5e, 0x46, 0x85, 0xa7, 0xbf, 0x8e, 0xc2)
	table = binary.LittleEndian.AppendUint16(table, 4+2*header)
	table = append(table, 0xde, 0x82, 0xb5, 0x96, 0xb2, 0x1f, 0xf7, 0x45, 0xba, 0xea, 0xa3, 0x66, 0xc5, 0x5a, 0x08, 0x2d)
	copy(image[len(image)-tail-len(table):], table)
	return image
}

func tdxMetadata() []byte {
	sections := [][4]uint64{ // offset<<32|size in the image, address, size in memory, type<<32|attributes
		{2 * pageSize << 32, fourGiB - 6*pageSize, 6 * pageSize, 0<<32 | 1},
		{0, fourGiB - 8*pageSize, 2 * pageSize, 1 << 32},
		{0, 0x810000, 3 * pageSize, 3 << 32},
		{0, 0x809000, 2 * pageSize, 2 << 32},
	}
	metadata := append([]byte("TDVF"), 0, 0, 0, 0, 1, 0, 0, 0, byte(len(sections)), 0, 0, 0)
	binary.LittleEndian.PutUint32(metadata[4:], uint32(16+32*len(sections)))
	for _, s := range sections {
		size := uint32(0)
		if s[3]>>32 < 2 {
			size = uint32(s[2])
		}
		metadata = binary.LittleEndian.AppendUint32(metadata, uint32(s[0]>>32))
		metadata = binary.LittleEndian.AppendUint32(metadata, size)
		metadata = binary.LittleEndian.AppendUint64(metadata, s[1])
		metadata = binary.LittleEndian.AppendUint64(metadata, s[2])
		metadata = binary.LittleEndian.AppendUint32(metadata, uint32(s[3]>>32))
		metadata = binary.LittleEndian.AppendUint32(metadata, uint32(s[3]))
	}
	return metadata
}
