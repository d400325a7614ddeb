package measure

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"testing"

	"github.com/containerd/errdefs"
)

// tdvf builds a firmware image of 8 pages with the sections of a TDX build of OVMF: a volume, its variables, and memory.
func tdvf(edit func(metadata []byte)) []byte {
	const pages, tail, header = 8, 32, 18
	image := make([]byte, pages*pageSize)
	for i := range image {
		image[i] = byte(i * 7 >> 3)
	}
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
	if edit != nil {
		edit(metadata)
	}
	const fromEnd = 1024
	copy(image[len(image)-fromEnd:], metadata)
	copy(image[len(image)-fromEnd-16:], []byte{0xf3, 0xf9, 0xea, 0xe9, 0x8e, 0x16, 0xd5, 0x44, 0xa8, 0xeb, 0x7f, 0x4d, 0x87, 0x38, 0xf6, 0xae})
	table := binary.LittleEndian.AppendUint32(nil, fromEnd)
	table = binary.LittleEndian.AppendUint16(table, 4+header)
	table = append(table, guidTDXMetadata[:]...)
	table = binary.LittleEndian.AppendUint16(table, 4+2*header)
	table = append(table, guidFooter[:]...)
	copy(image[len(image)-tail-len(table):], table)
	return image
}

// The value for SectionBySection was computed from the same image by another implementation, that of https://github.com/quex-tech/td-report-web.
func TestMRTD(t *testing.T) {
	for name, tc := range map[string]struct {
		order PageOrder
		want  string
	}{
		"section by section": {SectionBySection, "9e2f58b65754162864ce3285d2696b6fdb00a7b60d0a65596bc26da81060966eef5f4cc8c0a7e1962750a839759d8137"},
		"page by page":       {PageByPage, "3941a97dbd1160cf32132ef958f8519cb48f661671db2ceec59e042381458f15bf6f55722d347f4c27e8a253098711bd"},
	} {
		if got, err := MRTD(tdvf(nil), tc.order); err != nil || hex.EncodeToString(got) != tc.want {
			t.Errorf("%s: got %x, %v", name, got, err)
		}
	}
}

func TestMRTDShowsWhatIsMeasured(t *testing.T) {
	base, err := MRTD(tdvf(nil), PageByPage)
	if err != nil {
		t.Fatal(err)
	}
	const volume, variables = 3 * pageSize, pageSize
	for name, tc := range map[string]struct {
		image   []byte
		changes bool
	}{
		"code":              {flip(tdvf(nil), volume), true},
		"variables":         {flip(tdvf(nil), variables), false}, // they go into a runtime register
		"address of memory": {tdvf(func(m []byte) { m[16+2*32+9] ^= 0x10 }), true},
		"size of memory":    {tdvf(func(m []byte) { m[16+2*32+17] ^= 0x10 }), true},
	} {
		if got, err := MRTD(tc.image, PageByPage); err != nil || bytes.Equal(got, base) == tc.changes {
			t.Errorf("%s: got %x, %v", name, got, err)
		}
	}
}

func flip(image []byte, at int) []byte {
	image[at] ^= 1
	return image
}

func TestMRTDRefused(t *testing.T) {
	for name, image := range map[string][]byte{
		"SNP's firmware":       firmwareFile(t, "ovmf_AmdSev_suffix.bin")[:pageSize-1],
		"empty":                nil,
		"other signature":      tdvf(func(m []byte) { m[0] = 'X' }),
		"other version":        tdvf(func(m []byte) { m[8] = 2 }),
		"no sections":          tdvf(func(m []byte) { m[12] = 0 }),
		"too many sections":    tdvf(func(m []byte) { m[12], m[13] = 0xff, 0xff }),
		"other length":         tdvf(func(m []byte) { m[4]++ }),
		"volume beyond image":  tdvf(func(m []byte) { m[16+3] = 0xff }),
		"volume not filled":    tdvf(func(m []byte) { m[16+5] = 0 }),
		"odd address":          tdvf(func(m []byte) { m[16+8] = 1 }),
		"odd size":             tdvf(func(m []byte) { m[16+2*32+16] = 1 }),
		"huge memory":          tdvf(func(m []byte) { m[16+2*32+22] = 1 }),
		"unknown type":         tdvf(func(m []byte) { m[16+2*32+24] = 9 }),
		"unknown attribute":    tdvf(func(m []byte) { m[16+28] = 3 }),
		"host's data measured": tdvf(func(m []byte) { m[16+2*32+28] = 1 }),
	} {
		if got, err := MRTD(image, PageByPage); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: got %x, %v", name, got, err)
		}
	}
}

func FuzzMRTD(f *testing.F) {
	f.Add(tdvf(nil))
	f.Fuzz(func(t *testing.T, image []byte) {
		parsed, err := parseFirmware(image)
		if err != nil {
			return
		}
		sections, err := parsed.tdvfSections()
		if err != nil {
			return
		}
		pages := 0
		for _, s := range sections {
			pages += s.pages
		}
		if pages > 1024 {
			return // valid, and slow
		}
		if _, err := MRTD(image, PageByPage); err != nil {
			t.Error(err)
		}
	})
}
