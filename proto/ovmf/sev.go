package ovmf

import (
	"encoding/binary"
	"fmt"

	"github.com/containerd/errdefs"
)

// The kinds of SEVSection (edk2, OvmfPkg/ResetVector/X64/OvmfSevMetadata.asm).
const (
	SEVMemory  = 1 // pages that are zero
	SEVSecrets = 2
	SEVCPUID   = 3
	SEVSVSMCAA = 4 // zero, too
	SEVHashes  = 0x10
)

// maxSections and maxSectionPages bound the work that a table can ask for; OVMF has some ten sections of under 200 pages.
const (
	maxSections     = 64
	maxSectionPages = 1 << 16
)

// SEVSection is a range of the guest's memory that is measured before an SNP guest starts.
type SEVSection struct {
	Kind    uint32
	Address uint64
	Pages   int
}

// SEVSections reads the table of sections; an image without one cannot start under SNP.
func (f *Image) SEVSections() ([]SEVSection, error) {
	const header, entry = 16, 12
	bad := func(reason string) ([]SEVSection, error) {
		return nil, fmt.Errorf("firmware %s: it is no OVMF build for SNP: %w", reason, errdefs.ErrInvalidArgument)
	}
	raw, ok := f.fromEnd(guidSEVMetadata)
	if !ok || len(raw) < header || string(raw[:4]) != "ASEV" || binary.LittleEndian.Uint32(raw[8:]) != 1 {
		return bad("has no SEV metadata of version 1")
	}
	count := binary.LittleEndian.Uint32(raw[12:])
	if count > maxSections || len(raw) < header+entry*int(count) || binary.LittleEndian.Uint32(raw[4:]) < header+entry*count {
		return bad("has damaged SEV metadata")
	}
	sections := make([]SEVSection, count)
	for i := range sections {
		at := raw[header+entry*i:]
		address, size := binary.LittleEndian.Uint32(at), binary.LittleEndian.Uint32(at[4:])
		if address%PageSize != 0 || size%PageSize != 0 || size/PageSize > maxSectionPages {
			return bad("has SEV metadata with a section that is not made of pages")
		}
		sections[i] = SEVSection{Kind: binary.LittleEndian.Uint32(at[8:]), Address: uint64(address), Pages: int(size / PageSize)}
	}
	return sections, nil
}

// CheckSNP tells whether a guest can be launched from the image under SNP with the hashes of its kernel measured.
func (f *Image) CheckSNP() error {
	sections, err := f.SEVSections()
	if err != nil {
		return err
	}
	if _, ok := f.HashTable(); !ok {
		return fmt.Errorf("firmware has no SEV hash table: kernel-hashes=on needs one: use a build of OvmfPkg/AmdSev: %w", errdefs.ErrInvalidArgument)
	}
	for _, s := range sections {
		if s.Kind == SEVHashes {
			return nil
		}
	}
	return fmt.Errorf("firmware has no section for the hashes of a kernel: use a build of OvmfPkg/AmdSev: %w", errdefs.ErrInvalidArgument)
}
