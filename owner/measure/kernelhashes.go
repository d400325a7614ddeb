package measure

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/ovmf"
)

// guid is in the mixed byte order of UEFI.
type guid [16]byte

// The GUIDs of the table by which QEMU tells firmware what kernel to expect (QEMU, target/i386/sev.c).
var (
	guidHashes  = guid{0x06, 0xd6, 0x38, 0x94, 0x22, 0x4f, 0xc9, 0x4c, 0xb4, 0x79, 0xa7, 0x93, 0xd4, 0x11, 0xfd, 0x21}
	guidKernel  = guid{0x37, 0x94, 0xe7, 0x4d, 0xd2, 0xab, 0x7f, 0x42, 0xb8, 0x35, 0xd5, 0xb1, 0x72, 0xd2, 0x04, 0x5b}
	guidInitrd  = guid{0x31, 0xf7, 0xba, 0x44, 0x2f, 0x3a, 0xd7, 0x4b, 0x9a, 0xf1, 0x41, 0xe2, 0x91, 0x69, 0x78, 0x1d}
	guidCmdline = guid{0xd8, 0x2d, 0xd0, 0x97, 0x20, 0xbd, 0x94, 0x4c, 0xaa, 0x78, 0xe7, 0x71, 0x4d, 0x36, 0xab, 0x2a}
)

// hashesPage returns the page that holds the table, which lies somewhere within it.
func (g SNPGuest) hashesPage(f *ovmf.Image, s ovmf.SEVSection) ([]byte, error) {
	address, ok := f.HashTable()
	table := g.hashes()
	offset := int(address % ovmf.PageSize)
	if !ok || s.Pages != 1 || uint64(address)-uint64(offset) != s.Address || offset+len(table) > ovmf.PageSize {
		return nil, fmt.Errorf("firmware has no place for the hashes of a kernel: %w", errdefs.ErrInvalidArgument)
	}
	page := make([]byte, ovmf.PageSize)
	copy(page[offset:], table)
	return page, nil
}

// hashes returns the table, padded to a multiple of 16 bytes.
func (g SNPGuest) hashes() []byte {
	const entrySize = 16 + 2 + sha256.Size
	const size = 16 + 2 + 3*entrySize
	cmdline := append([]byte(g.Cmdline), 0)
	out := append([]byte(nil), guidHashes[:]...)
	out = binary.LittleEndian.AppendUint16(out, size)
	for _, entry := range []struct {
		id   guid
		data []byte
	}{{guidCmdline, cmdline}, {guidInitrd, g.Initrd}, {guidKernel, g.Kernel}} {
		sum := sha256.Sum256(entry.data)
		out = append(out, entry.id[:]...)
		out = binary.LittleEndian.AppendUint16(out, entrySize)
		out = append(out, sum[:]...)
	}
	return append(out, make([]byte, (16-size%16)%16)...)
}
