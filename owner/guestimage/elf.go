package guestimage

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"

	"github.com/containerd/errdefs"
)

// notePVH is the type of the Xen note that gives the 32-bit entry point for starting a kernel directly.
const notePVH = 18

const (
	elfHeaderSize  = 64
	progHeaderSize = 56
	pageSize       = 4096
	// minHole is the shortest run of zero bytes that is worth a segment of its own.
	minHole = 64 << 10
)

// segment is one part of a kernel that is loaded to memory.
type segment struct {
	elf.ProgHeader
	data []byte
}

// compact rewrites a kernel's ELF file so that it holds only what a loader reads: no section table, no padding between
// segments, and no long runs of zeros, which memory holds anyway. It saves a third of the file. Addresses stay as they are.
func compact(vmlinux []byte) ([]byte, error) {
	in, err := elf.NewFile(bytes.NewReader(vmlinux))
	if err != nil {
		return nil, fmt.Errorf("read kernel: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if in.Class != elf.ELFCLASS64 || in.Machine != elf.EM_X86_64 || in.Type != elf.ET_EXEC {
		return nil, fmt.Errorf("kernel is not a 64-bit x86 program: %w", errdefs.ErrInvalidArgument)
	}
	if !hasPVH(in) {
		return nil, fmt.Errorf("kernel has no PVH entry point (CONFIG_PVH), so no monitor can start it directly: %w", errdefs.ErrInvalidArgument)
	}
	var segments []segment
	for _, p := range in.Progs {
		if p.Type != elf.PT_LOAD && p.Type != elf.PT_NOTE {
			continue
		}
		data, err := readAll(p.Open(), maxVmlinux)
		if err != nil {
			return nil, fmt.Errorf("read kernel segment at %#x: %w", p.Paddr, err)
		}
		s := segment{ProgHeader: p.ProgHeader, data: data}
		if p.Type == elf.PT_NOTE {
			segments = append(segments, s)
			continue
		}
		segments = append(segments, split(s)...)
	}
	return writeELF(in.Entry, segments), nil
}

// split cuts the long runs of zero pages out of a segment. Each part's memory reaches to the start of the next.
func split(s segment) []segment {
	var parts []segment
	end := uint64(len(s.data))
	for at := uint64(0); at < end; {
		stop := at + run(s.data[at:], false)
		next := stop + run(s.data[stop:], true)
		part := s
		part.Vaddr, part.Paddr, part.data = s.Vaddr+at, s.Paddr+at, s.data[at:stop]
		part.Filesz, part.Memsz = stop-at, next-at
		if next == end {
			part.Memsz = s.Memsz - at
		}
		parts = append(parts, part)
		at = next
	}
	return parts
}

// run is the length in bytes of the data before (zero false) or of (zero true) the first run of zero pages that is at
// least minHole long.
func run(data []byte, zero bool) uint64 {
	hole := 0
	for at := 0; at < len(data); at += pageSize {
		end := min(at+pageSize, len(data))
		if isZero(data[at:end]) {
			hole += end - at
			continue
		}
		if zero {
			return uint64(at)
		}
		if hole >= minHole {
			return uint64(at - hole)
		}
		hole = 0
	}
	if !zero && hole >= minHole {
		return uint64(len(data) - hole)
	}
	return uint64(len(data))
}

func isZero(data []byte) bool {
	for _, b := range data {
		if b != 0 {
			return false
		}
	}
	return true
}

// writeELF lays the headers out, then the segments one after another, page by page.
func writeELF(entry uint64, segments []segment) []byte {
	var out bytes.Buffer
	header := elf.Header64{
		Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Entry: entry, Phoff: elfHeaderSize, Ehsize: elfHeaderSize,
		Phentsize: progHeaderSize, Phnum: uint16(len(segments)),
	}
	copy(header.Ident[:], elf.ELFMAG)
	header.Ident[elf.EI_CLASS] = byte(elf.ELFCLASS64)
	header.Ident[elf.EI_DATA] = byte(elf.ELFDATA2LSB)
	header.Ident[elf.EI_VERSION] = byte(elf.EV_CURRENT)
	put(&out, header)
	offset := align(elfHeaderSize + progHeaderSize*len(segments))
	for _, s := range segments {
		put(&out, elf.Prog64{
			Type: uint32(s.Type), Flags: uint32(s.Flags), Off: uint64(offset), Vaddr: s.Vaddr, Paddr: s.Paddr,
			Filesz: uint64(len(s.data)), Memsz: s.Memsz, Align: min(s.Align, pageSize),
		})
		offset = align(offset + len(s.data))
	}
	for _, s := range segments {
		out.Write(make([]byte, align(out.Len())-out.Len()))
		out.Write(s.data)
	}
	return out.Bytes()
}

// put writes a structure of fixed size to memory, which cannot fail.
func put(out *bytes.Buffer, v any) { _ = binary.Write(out, binary.LittleEndian, v) }

func align(n int) int { return (n + pageSize - 1) &^ (pageSize - 1) }

// hasPVH looks for the note in all note segments.
func hasPVH(in *elf.File) bool {
	for _, p := range in.Progs {
		if p.Type != elf.PT_NOTE {
			continue
		}
		notes, err := readAll(p.Open(), 1<<20)
		if err != nil {
			return false
		}
		for len(notes) >= 12 {
			nameSize := uint64(binary.LittleEndian.Uint32(notes))
			descSize := uint64(binary.LittleEndian.Uint32(notes[4:]))
			kind := binary.LittleEndian.Uint32(notes[8:])
			next := 12 + (nameSize+3)&^3 + (descSize+3)&^3
			if next > uint64(len(notes)) {
				return false
			}
			if kind == notePVH && nameSize == 4 && string(notes[12:16]) == "Xen\x00" {
				return true
			}
			notes = notes[next:]
		}
	}
	return false
}

// checkStatic refuses a program that cannot run in a guest without libraries.
func checkStatic(name string, program []byte) error {
	in, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		return fmt.Errorf("%s is not a Linux program: %w: %w", name, err, errdefs.ErrInvalidArgument)
	}
	if in.Class != elf.ELFCLASS64 || in.Machine != elf.EM_X86_64 {
		return fmt.Errorf("%s is not a 64-bit x86 program: %w", name, errdefs.ErrInvalidArgument)
	}
	for _, p := range in.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("%s is dynamically linked, but the guest has no libraries: build it statically: %w", name, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}
