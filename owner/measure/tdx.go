package measure

import (
	"crypto/sha512"
	"encoding/binary"
	"fmt"
	"hash"

	"github.com/containerd/errdefs"
)

// PageOrder is the order in which a host adds the firmware's pages to a trust domain and measures them. MRTD depends on it.
type PageOrder int

const (
	// PageByPage adds a page and measures it before the next one: KVM of Linux 6.16 and later.
	PageByPage PageOrder = iota
	// SectionBySection adds all pages of a section and measures them after that: the patches that distributions had before.
	SectionBySection
)

// The attributes and types of TDVF sections (Intel TDX Virtual Firmware Design Guide, section 11.2).
const (
	tdvfExtend      = 1 << 0 // the content is measured, not only the address
	tdvfVolume      = 0
	tdvfConfig      = 1
	tdvfHandOff     = 2
	tdvfMemory      = 3
	tdvfKnown       = tdvfExtend
	tdvfChunk       = 256
	tdvfDescriptor  = "TDVF"
	tdvfSectionSize = 32
)

// tdvfSection is a range of a trust domain's memory that is there when it starts.
type tdvfSection struct {
	data    []byte // of the image; may be shorter than pages, zeros follow
	address uint64
	pages   int
	extend  bool
}

// MRTD returns the measurement of a trust domain that QEMU launches from a firmware image (TDVF). It does not depend on processors,
// memory, kernel or disks; what firmware then loads is measured into runtime registers. A file that is no such firmware is
// InvalidArgument.
func MRTD(image []byte, order PageOrder) ([]byte, error) {
	f, err := parseFirmware(image)
	if err != nil {
		return nil, err
	}
	sections, err := f.tdvfSections()
	if err != nil {
		return nil, err
	}
	m := mrtd{sha512.New384()}
	for _, s := range sections {
		for page := range s.pages {
			m.add(s, page)
			if order == PageByPage {
				m.extend(s, page)
			}
		}
		for page := 0; order == SectionBySection && page < s.pages; page++ {
			m.extend(s, page)
		}
	}
	return m.Sum(nil), nil
}

// mrtd follows the TDX module: each operation on a page is hashed as a block of 128 bytes (Intel TDX Module Base Architecture
// Specification, section 12.1, and TDH.MEM.PAGE.ADD and TDH.MR.EXTEND in the ABI specification).
type mrtd struct{ hash.Hash }

func (m mrtd) operation(name string, address uint64) {
	block := make([]byte, 128)
	copy(block, name)
	binary.LittleEndian.PutUint64(block[16:], address)
	m.Write(block)
}

func (m mrtd) add(s tdvfSection, page int) {
	m.operation("MEM.PAGE.ADD", s.address+uint64(page)*pageSize)
}

func (m mrtd) extend(s tdvfSection, page int) {
	if !s.extend {
		return
	}
	for at := page * pageSize; at < (page+1)*pageSize; at += tdvfChunk {
		m.operation("MR.EXTEND", s.address+uint64(at))
		m.Write(s.data[at : at+tdvfChunk])
	}
}

// tdvfSections reads the firmware's table. Errors are InvalidArgument.
func (f *firmware) tdvfSections() ([]tdvfSection, error) {
	const header = 16
	bad := func(reason string) ([]tdvfSection, error) {
		return nil, fmt.Errorf("firmware %s: it is no OVMF build for TDX: %w", reason, errdefs.ErrInvalidArgument)
	}
	raw, ok := f.fromEnd(guidTDXMetadata)
	if !ok || len(raw) < header || string(raw[:4]) != tdvfDescriptor || binary.LittleEndian.Uint32(raw[8:]) != 1 {
		return bad("has no TDX metadata of version 1")
	}
	count := binary.LittleEndian.Uint32(raw[12:])
	if count == 0 || count > maxSections || len(raw) < header+tdvfSectionSize*int(count) || binary.LittleEndian.Uint32(raw[4:]) != header+tdvfSectionSize*count {
		return bad("has damaged TDX metadata")
	}
	sections := make([]tdvfSection, count)
	for i := range sections {
		var err error
		if sections[i], err = f.tdvfSection(raw[header+tdvfSectionSize*i:]); err != nil {
			return bad(err.Error())
		}
	}
	return sections, nil
}

func (f *firmware) tdvfSection(raw []byte) (tdvfSection, error) {
	offset, size := uint64(binary.LittleEndian.Uint32(raw)), uint64(binary.LittleEndian.Uint32(raw[4:]))
	address, memory := binary.LittleEndian.Uint64(raw[8:]), binary.LittleEndian.Uint64(raw[16:])
	kind, attributes := binary.LittleEndian.Uint32(raw[24:]), binary.LittleEndian.Uint32(raw[28:])
	s := tdvfSection{address: address, pages: int(memory / pageSize), extend: attributes&tdvfExtend != 0}
	switch {
	case attributes&^tdvfKnown != 0:
		return s, fmt.Errorf("has TDX metadata with unknown attributes %#x", attributes)
	case address%pageSize != 0 || memory%pageSize != 0 || memory/pageSize > maxSectionPages:
		return s, fmt.Errorf("has TDX metadata with a section that is not made of pages")
	}
	switch kind {
	case tdvfVolume, tdvfConfig:
		if size != memory || offset > uint64(len(f.image)) || size > uint64(len(f.image))-offset {
			return s, fmt.Errorf("has TDX metadata with a section beyond the image")
		}
		s.data = f.image[offset : offset+size]
	case tdvfHandOff, tdvfMemory:
		if size != 0 || s.extend {
			return s, fmt.Errorf("has TDX metadata that measures memory which the host fills")
		}
	default:
		return s, fmt.Errorf("has TDX metadata with a section of unknown type %#x", kind)
	}
	return s, nil
}
