package measure

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/ovmf"
)

// resetVector is where the first processor starts.
const resetVector = 0xfffffff0

// vmsaPage returns the state in which QEMU and KVM start a processor at entry (AMD64 Architecture Programmer's Manual, volume 2, appendix
// B.4, and the state after reset that it prescribes in section 14.1.3).
func vmsaPage(entry, cpu uint32, features uint64) []byte {
	page := make([]byte, ovmf.PageSize)
	u16 := func(at int, v uint16) { binary.LittleEndian.PutUint16(page[at:], v) }
	u64 := func(at int, v uint64) { binary.LittleEndian.PutUint64(page[at:], v) }
	segment := func(at int, selector, attributes uint16, base uint64) {
		u16(at, selector)
		u16(at+2, attributes)
		binary.LittleEndian.PutUint32(page[at+4:], 0xffff)
		u64(at+8, base)
	}
	const data, code, ldt, tss = 0x93, 0x9b, 0x82, 0x8b
	segment(0x00, 0, data, 0)                             // ES
	segment(0x10, 0xf000, code, uint64(entry&0xffff0000)) // CS
	segment(0x20, 0, data, 0)                             // SS
	segment(0x30, 0, data, 0)                             // DS
	segment(0x40, 0, data, 0)                             // FS
	segment(0x50, 0, data, 0)                             // GS
	segment(0x60, 0, 0, 0)                                // GDTR
	segment(0x70, 0, ldt, 0)                              // LDTR
	segment(0x80, 0, 0, 0)                                // IDTR
	segment(0x90, 0, tss, 0)                              // TR
	u64(0xd0, 0x1000)                                     // EFER: SVME, by KVM
	u64(0x148, 0x40)                                      // CR4: MCE, by KVM
	u64(0x158, 0x10)                                      // CR0
	u64(0x160, 0x400)                                     // DR7
	u64(0x168, 0xffff0ff0)                                // DR6
	u64(0x170, 0x2)                                       // RFLAGS
	u64(0x178, uint64(entry&0xffff))                      // RIP
	u64(0x268, 0x0007040600070406)                        // PAT
	u64(0x310, uint64(cpu))                               // RDX: the processor's signature
	u64(0x3b0, features)                                  // SEV_FEATURES
	u64(0x3e8, 1)                                         // XCR0
	binary.LittleEndian.PutUint32(page[0x408:], 0x1f80)   // MXCSR
	u16(0x410, 0x37f)                                     // x87 control word
	return page
}

// cpuModels are the processors' family, model and stepping by QEMU's names of them (QEMU, target/i386/cpu.c). Versions of one model
// (-v1, -v2) share them.
var cpuModels = map[string][3]uint32{
	"EPYC":       {23, 1, 2},
	"EPYC-Rome":  {23, 49, 0},
	"EPYC-Milan": {25, 1, 1},
	"EPYC-Genoa": {25, 17, 0},
	"EPYC-Turin": {26, 0, 0},
}

// CPUModels lists the names that CPUSignature knows.
func CPUModels() []string { return slices.Sorted(maps.Keys(cpuModels)) }

// CPUSignature returns SNPGuest.CPU for QEMU's name of a processor ("EPYC-v4", "EPYC-Genoa"), or for a number, which is CPUID function
// 1, register EAX, of processors that QEMU passes through (-cpu host). Other names are InvalidArgument.
func CPUSignature(name string) (uint32, error) {
	if number, err := strconv.ParseUint(name, 0, 32); err == nil {
		return uint32(number), nil
	}
	model := name
	if at := strings.LastIndex(name, "-v"); at > 0 {
		if _, err := strconv.ParseUint(name[at+2:], 10, 8); err == nil {
			model = name[:at]
		}
	}
	known, ok := cpuModels[model]
	if !ok {
		return 0, fmt.Errorf("processor model %.40q is none of %s, and no number: %w", name, strings.Join(CPUModels(), ", "), errdefs.ErrInvalidArgument)
	}
	return signature(known[0], known[1], known[2]), nil
}

// signature packs the numbers as CPUID does (AMD's CPUID specification, function 0000_0001_EAX).
func signature(family, model, stepping uint32) uint32 {
	low, high := min(family, 0xf), max(family, 0xf)-0xf
	return high<<20 | (model>>4&0xf)<<16 | low<<8 | (model&0xf)<<4 | stepping&0xf
}
