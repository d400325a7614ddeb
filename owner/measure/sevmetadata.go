package measure

import (
	"encoding/binary"
	"fmt"

	"github.com/containerd/errdefs"
)

// The kinds of sections (edk2, OvmfPkg/ResetVector/X64/OvmfSevMetadata.asm).
const (
	sectionMemory  = 1 // pages that are zero
	sectionSecrets = 2
	sectionCPUID   = 3
	sectionSVSMCAA = 4 // zero, too
	sectionHashes  = 0x10
)

// maxSections and maxSectionPages bound the work that a table can ask for; OVMF has some ten sections of under 200 pages.
const (
	maxSections     = 64
	maxSectionPages = 1 << 16
)

// section is a range of the guest's memory that is measured before it starts.
type section struct {
	kind    uint32
	address uint64
	pages   int
}

// sevSections reads the table of sections. Errors are InvalidArgument.
func (f *firmware) sevSections() ([]section, error) {
	const header, entry = 16, 12
	bad := func(reason string) ([]section, error) {
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
	sections := make([]section, count)
	for i := range sections {
		at := raw[header+entry*i:]
		address, size := binary.LittleEndian.Uint32(at), binary.LittleEndian.Uint32(at[4:])
		if address%pageSize != 0 || size%pageSize != 0 || size/pageSize > maxSectionPages {
			return bad("has SEV metadata with a section that is not made of pages")
		}
		sections[i] = section{kind: binary.LittleEndian.Uint32(at[8:]), address: uint64(address), pages: int(size / pageSize)}
	}
	return sections, nil
}
