package ovmf

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
)

// The attributes and types of TDVF sections (Intel TDX Virtual Firmware Design Guide, section 11.2).
const (
	tdvfExtend      = 1 << 0 // the content is measured, not only the address
	tdvfVolume      = 0
	tdvfConfig      = 1
	tdvfHandOff     = 2
	tdvfMemory      = 3
	tdvfKnown       = tdvfExtend
	tdvfDescriptor  = "TDVF"
	tdvfSectionSize = 32
)

// TDXSection is a range of a trust domain's memory that is there when it starts.
type TDXSection struct {
	// Data is the section's content in the image, as long as the section; nil where there is none.
	Data    []byte
	Address uint64
	Pages   int
	// Extend is set when the content is measured, not only the address.
	Extend bool
}

// TDXSections reads the image's table; an image without one cannot start under TDX.
func (f *Image) TDXSections() ([]TDXSection, error) {
	const header = 16
	bad := func(reason string) ([]TDXSection, error) {
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
	sections := make([]TDXSection, count)
	for i := range sections {
		var err error
		if sections[i], err = f.tdxSection(raw[header+tdvfSectionSize*i:]); err != nil {
			return bad(err.Error())
		}
	}
	return sections, nil
}

func (f *Image) tdxSection(raw []byte) (TDXSection, error) {
	offset, size := uint64(binary.LittleEndian.Uint32(raw)), uint64(binary.LittleEndian.Uint32(raw[4:]))
	address, memory := binary.LittleEndian.Uint64(raw[8:]), binary.LittleEndian.Uint64(raw[16:])
	kind, attributes := binary.LittleEndian.Uint32(raw[24:]), binary.LittleEndian.Uint32(raw[28:])
	s := TDXSection{Address: address, Pages: int(memory / PageSize), Extend: attributes&tdvfExtend != 0}
	switch {
	case attributes&^tdvfKnown != 0:
		return s, fmt.Errorf("has TDX metadata with unknown attributes %#x", attributes)
	case address%PageSize != 0 || memory%PageSize != 0 || memory/PageSize > maxSectionPages:
		return s, errors.New("has TDX metadata with a section that is not made of pages")
	}
	switch kind {
	case tdvfVolume, tdvfConfig:
		if size != memory || offset > uint64(len(f.raw)) || size > uint64(len(f.raw))-offset {
			return s, errors.New("has TDX metadata with a section beyond the image")
		}
		s.Data = f.raw[offset : offset+size]
	case tdvfHandOff, tdvfMemory:
		if size != 0 || s.Extend {
			return s, errors.New("has TDX metadata that measures memory which the host fills")
		}
	default:
		return s, fmt.Errorf("has TDX metadata with a section of unknown type %#x", kind)
	}
	return s, nil
}
