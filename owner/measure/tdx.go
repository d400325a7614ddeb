package measure

import (
	"crypto/sha512"
	"encoding/binary"
	"hash"

	"github.com/coffer-project/coffer/proto/ovmf"
)

// PageOrder is the order in which a host adds the firmware's pages to a trust domain and measures them. MRTD depends on it.
type PageOrder int

const (
	// PageByPage adds a page and measures it before the next one: KVM of Linux 6.16 and later.
	PageByPage PageOrder = iota
	// SectionBySection adds all pages of a section and measures them after that: the patches that distributions had before.
	SectionBySection
)

// extendChunk is how much of a page TDH.MR.EXTEND measures at a time, in bytes.
const extendChunk = 256

// MRTD returns the measurement of a trust domain that QEMU launches from a firmware image (TDVF). It does not depend on processors,
// memory, kernel or disks; what firmware then loads is measured into runtime registers. A file that is no such firmware is
// InvalidArgument.
func MRTD(image []byte, order PageOrder) ([]byte, error) {
	f, err := ovmf.Parse(image)
	if err != nil {
		return nil, err
	}
	sections, err := f.TDXSections()
	if err != nil {
		return nil, err
	}
	m := mrtd{sha512.New384()}
	for _, s := range sections {
		for page := range s.Pages {
			m.add(s, page)
			if order == PageByPage {
				m.extend(s, page)
			}
		}
		for page := 0; order == SectionBySection && page < s.Pages; page++ {
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

func (m mrtd) add(s ovmf.TDXSection, page int) {
	m.operation("MEM.PAGE.ADD", s.Address+uint64(page)*ovmf.PageSize)
}

func (m mrtd) extend(s ovmf.TDXSection, page int) {
	if !s.Extend {
		return
	}
	for at := page * ovmf.PageSize; at < (page+1)*ovmf.PageSize; at += extendChunk {
		m.operation("MR.EXTEND", s.Address+uint64(at))
		m.Write(s.Data[at : at+extendChunk])
	}
}
