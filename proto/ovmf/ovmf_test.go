package ovmf_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/ovmf"
	"github.com/coffer-project/coffer/proto/ovmf/ovmftest"
)

func edit(image []byte, at int, value ...byte) []byte {
	copy(image[at:], value)
	return image
}

func TestCheckSNP(t *testing.T) {
	metadata := bytes.LastIndex(ovmftest.AmdSev(), []byte("ASEV"))
	for name, tc := range map[string]struct {
		image []byte
		want  string // of the error
	}{
		"AmdSev":             {ovmftest.AmdSev(), ""},
		"no room for hashes": {ovmftest.X64(), "kernel-hashes=on needs one"},
		"TDX's":              {ovmftest.TDX(nil), "no SEV metadata"},
		"not this version":   {edit(ovmftest.AmdSev(), metadata+8, 2), "no SEV metadata"},
		"not signed so":      {edit(ovmftest.AmdSev(), metadata, 'X'), "no SEV metadata"},
		"too many sections":  {edit(ovmftest.AmdSev(), metadata+12, 0xff), "damaged SEV metadata"},
		"part of a page":     {edit(ovmftest.AmdSev(), metadata+16+4, 1), "not made of pages"},
	} {
		t.Run(name, func(t *testing.T) {
			image, err := ovmf.Parse(tc.image)
			if err != nil {
				t.Fatal(err)
			}
			err = image.CheckSNP()
			if tc.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestTDXSections(t *testing.T) {
	image, err := ovmf.Parse(ovmftest.TDX(nil))
	if err != nil {
		t.Fatal(err)
	}
	sections, err := image.TDXSections()
	if err != nil || len(sections) != 4 || !sections[0].Extend || len(sections[0].Data) != sections[0].Pages*ovmf.PageSize {
		t.Errorf("got %d sections, %v", len(sections), err)
	}
	image, err = ovmf.Parse(ovmftest.AmdSev())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := image.TDXSections(); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("SNP's firmware: %v", err)
	}
}

func TestParseRefuses(t *testing.T) {
	amd := ovmftest.AmdSev()
	for name, image := range map[string][]byte{
		"nothing": nil, "part of a page": amd[1:], "no table": make([]byte, ovmf.PageSize),
		"table too long": edit(ovmftest.AmdSev(), len(amd)-32-18, 0xff, 0xff),
	} {
		if _, err := ovmf.Parse(image); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzParse holds what is read against the image: no section of TDX lies beyond it.
func FuzzParse(f *testing.F) {
	f.Add(ovmftest.AmdSev())
	f.Add(ovmftest.X64())
	f.Add(ovmftest.TDX(nil))
	f.Fuzz(func(t *testing.T, raw []byte) {
		image, err := ovmf.Parse(raw)
		if err != nil {
			return
		}
		sections, err := image.SEVSections()
		if checked := image.CheckSNP(); checked == nil && (err != nil || len(sections) == 0) {
			t.Errorf("an image with %d sections, %v, is found fit", len(sections), err)
		}
		domain, _ := image.TDXSections()
		for _, s := range domain {
			if s.Data != nil && len(s.Data) != s.Pages*ovmf.PageSize {
				t.Errorf("%d bytes for %d pages", len(s.Data), s.Pages)
			}
		}
	})
}
