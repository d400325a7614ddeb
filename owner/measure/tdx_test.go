package measure

import (
	"bytes"
	"encoding/hex"
	"errors"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/ovmf"
	"github.com/coffer-project/coffer/proto/ovmf/ovmftest"
)

// The value for SectionBySection was computed from the same image by another implementation, that of https://github.com/quex-tech/td-report-web.
func TestMRTD(t *testing.T) {
	for name, tc := range map[string]struct {
		order PageOrder
		want  string
	}{
		"section by section": {SectionBySection, "9e2f58b65754162864ce3285d2696b6fdb00a7b60d0a65596bc26da81060966eef5f4cc8c0a7e1962750a839759d8137"},
		"page by page":       {PageByPage, "3941a97dbd1160cf32132ef958f8519cb48f661671db2ceec59e042381458f15bf6f55722d347f4c27e8a253098711bd"},
	} {
		if got, err := MRTD(ovmftest.TDX(nil), tc.order); err != nil || hex.EncodeToString(got) != tc.want {
			t.Errorf("%s: got %x, %v", name, got, err)
		}
	}
}

func TestMRTDShowsWhatIsMeasured(t *testing.T) {
	base, err := MRTD(ovmftest.TDX(nil), PageByPage)
	if err != nil {
		t.Fatal(err)
	}
	const volume, variables = 3 * ovmf.PageSize, ovmf.PageSize
	for name, tc := range map[string]struct {
		image   []byte
		changes bool
	}{
		"code":              {flip(ovmftest.TDX(nil), volume), true},
		"variables":         {flip(ovmftest.TDX(nil), variables), false}, // they go into a runtime register
		"address of memory": {ovmftest.TDX(func(m []byte) { m[16+2*32+9] ^= 0x10 }), true},
		"size of memory":    {ovmftest.TDX(func(m []byte) { m[16+2*32+17] ^= 0x10 }), true},
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
		"SNP's firmware":       ovmftest.AmdSev()[:ovmf.PageSize-1],
		"empty":                nil,
		"other signature":      ovmftest.TDX(func(m []byte) { m[0] = 'X' }),
		"other version":        ovmftest.TDX(func(m []byte) { m[8] = 2 }),
		"no sections":          ovmftest.TDX(func(m []byte) { m[12] = 0 }),
		"too many sections":    ovmftest.TDX(func(m []byte) { m[12], m[13] = 0xff, 0xff }),
		"other length":         ovmftest.TDX(func(m []byte) { m[4]++ }),
		"volume beyond image":  ovmftest.TDX(func(m []byte) { m[16+3] = 0xff }),
		"volume not filled":    ovmftest.TDX(func(m []byte) { m[16+5] = 0 }),
		"odd address":          ovmftest.TDX(func(m []byte) { m[16+8] = 1 }),
		"odd size":             ovmftest.TDX(func(m []byte) { m[16+2*32+16] = 1 }),
		"huge memory":          ovmftest.TDX(func(m []byte) { m[16+2*32+22] = 1 }),
		"unknown type":         ovmftest.TDX(func(m []byte) { m[16+2*32+24] = 9 }),
		"unknown attribute":    ovmftest.TDX(func(m []byte) { m[16+28] = 3 }),
		"host's data measured": ovmftest.TDX(func(m []byte) { m[16+2*32+28] = 1 }),
	} {
		if got, err := MRTD(image, PageByPage); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: got %x, %v", name, got, err)
		}
	}
}

func FuzzMRTD(f *testing.F) {
	f.Add(ovmftest.TDX(nil))
	f.Fuzz(func(t *testing.T, image []byte) {
		parsed, err := ovmf.Parse(image)
		if err != nil {
			return
		}
		sections, err := parsed.TDXSections()
		if err != nil {
			return
		}
		pages := 0
		for _, s := range sections {
			pages += s.Pages
		}
		if pages > 1024 {
			return // valid, and slow
		}
		if _, err := MRTD(image, PageByPage); err != nil {
			t.Error(err)
		}
	})
}
