package measure

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/ovmf"
	"github.com/coffer-project/coffer/proto/ovmf/ovmftest"
)

// The digests are those that sev-snp-measure publishes in its tests.
func TestSNPDigestIsThePublishedOne(t *testing.T) {
	amd, x64 := ovmftest.AmdSev(), ovmftest.X64()
	empty := []byte{}
	for name, tc := range map[string]struct {
		guest SNPGuest
		want  string
	}{
		"kernel": {
			SNPGuest{Firmware: amd, Kernel: empty, Initrd: empty, Cmdline: "console=ttyS0 loglevel=7", VCPUs: 1, Features: SNPActive},
			"6d287813eb5222d770f75005c664e34c204f385ce832cc2ce7d0d6f354454362f390ef83a92046c042e706363b4b08fa",
		},
		"kernel, debug swap": {
			SNPGuest{Firmware: amd, Kernel: empty, Initrd: empty, Cmdline: "console=ttyS0 loglevel=7", VCPUs: 1, Features: SNPActive | DebugSwap},
			"803f691094946e42068aaa3a8f9e26a5c89f36f7b73ecfb28c653360fe4b3aba7e534442e7e1e17895dfe778d0228977",
		},
		"no command line": {
			SNPGuest{Firmware: amd, Kernel: empty, VCPUs: 1, Features: SNPActive},
			"ddc5224521617a536ee7ce9dd6224d1b58a8d4fda1c741f3ac99fc4bfa04ba6e9fc98646d4a07a9079397fa3852819b5",
		},
		"no kernel": {
			SNPGuest{Firmware: amd, VCPUs: 1, Features: SNPActive},
			"19358ba9a7615534a9a1e2f0dfc29384dcd4dcb7062ff9c6013b26869a5fc6ecabe033c48dd6f6db5d6d76e7c5df632d",
		},
		"no kernel, debug swap": {
			SNPGuest{Firmware: amd, VCPUs: 1, Features: SNPActive | DebugSwap},
			"e1e1ca029dd7973ab9513295be68198472dcd4fc834bd9af9b63f6e8a1674dbf281a9278a4a2ebe0eed9f22adbcd0e2b",
		},
		"four processors": {
			SNPGuest{Firmware: amd, Kernel: empty, VCPUs: 4, Features: SNPActive},
			"5061fffb019493a903613d56d54b94912a1a2f9e4502385f5c194616753720a92441310ba6c4933de877c36e23046ad5",
		},
		"four processors, debug swap": {
			SNPGuest{Firmware: amd, Kernel: empty, VCPUs: 4, Features: SNPActive | DebugSwap},
			"4953b1fb416fa874980e8442b3706d345926d5f38879134e00813c5d7abcbe78eafe7b422907be0b4698e2414a631942",
		},
		"other firmware": {
			SNPGuest{Firmware: x64, VCPUs: 1, Features: SNPActive},
			"da0296de8193586a5512078dcd719eccecbd87e2b825ad4148c44f665dc87df21e5b49e21523a9ad993afdb6a30b4005",
		},
		"other firmware, debug swap": {
			SNPGuest{Firmware: x64, VCPUs: 1, Features: SNPActive | DebugSwap},
			"28797ae0afaba4005a81e629acebfb59e6687949d6be44007cd5506823b0dd66f146aaae26ff291eed7b493d8a64c385",
		},
	} {
		t.Run(name, func(t *testing.T) {
			var err error
			if tc.guest.CPU, err = CPUSignature("EPYC-v4"); err != nil {
				t.Fatal(err)
			}
			got, err := tc.guest.Digest()
			if err != nil || hex.EncodeToString(got) != tc.want {
				t.Errorf("got %x, %v", got, err)
			}
		})
	}
}

// Everything that a host could exchange must show in the digest.
func TestSNPDigestShowsEveryInput(t *testing.T) {
	base := SNPGuest{
		Firmware: ovmftest.AmdSev(), Kernel: []byte("k"), Initrd: []byte("i"), Cmdline: "c",
		VCPUs: 2, CPU: 0x800f12, Features: SNPActive,
	}
	seen := map[string]string{}
	for name, edit := range map[string]func(*SNPGuest){
		"nothing":  func(*SNPGuest) {},
		"firmware": func(g *SNPGuest) { g.Firmware = bytes.Clone(g.Firmware); g.Firmware[100] ^= 1 },
		"kernel":   func(g *SNPGuest) { g.Kernel = []byte("K") },
		"initrd":   func(g *SNPGuest) { g.Initrd = []byte("I") },
		"cmdline":  func(g *SNPGuest) { g.Cmdline = "c " },
		"vcpus":    func(g *SNPGuest) { g.VCPUs = 3 },
		"cpu":      func(g *SNPGuest) { g.CPU++ },
		"features": func(g *SNPGuest) { g.Features |= DebugSwap },
	} {
		g := base
		edit(&g)
		digest, err := g.Digest()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if other, ok := seen[string(digest)]; ok {
			t.Errorf("%s and %s give the same digest", name, other)
		}
		seen[string(digest)] = name
	}
}

func TestSNPDigestRefused(t *testing.T) {
	amd, x64 := ovmftest.AmdSev(), ovmftest.X64()
	edit := func(image []byte, at int, value ...byte) []byte {
		out := bytes.Clone(image)
		copy(out[at:], value)
		return out
	}
	metadata := bytes.LastIndex(amd, []byte("ASEV"))
	for name, guest := range map[string]SNPGuest{
		"kernel without room":   {Firmware: x64, Kernel: []byte{}, VCPUs: 1, Features: SNPActive},
		"initrd without kernel": {Firmware: amd, Initrd: []byte{}, VCPUs: 1, Features: SNPActive},
		"no processors":         {Firmware: amd, Features: SNPActive},
		"not SNP":               {Firmware: amd, VCPUs: 1},
		"no firmware":           {VCPUs: 1, Features: SNPActive},
		"no pages":              {Firmware: amd[1:], VCPUs: 1, Features: SNPActive},
		"no table":              {Firmware: make([]byte, ovmf.PageSize), VCPUs: 1, Features: SNPActive},
		"table too long":        {Firmware: edit(amd, len(amd)-32-18, 0xff, 0xff), VCPUs: 1, Features: SNPActive},
		"other signature":       {Firmware: edit(amd, metadata, 'X'), VCPUs: 1, Features: SNPActive},
		"too many sections":     {Firmware: edit(amd, metadata+12, 0xff, 0xff), VCPUs: 1, Features: SNPActive},
		"unknown section":       {Firmware: edit(amd, metadata+16+8, 0x77), VCPUs: 1, Features: SNPActive},
		"huge section":          {Firmware: edit(amd, metadata+16+4, 0, 0xf0, 0xff, 0xff), VCPUs: 1, Features: SNPActive},
		"part of a page":        {Firmware: edit(amd, metadata+16+4, 1), VCPUs: 1, Features: SNPActive},
	} {
		if digest, err := guest.Digest(); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: got %x, %v", name, digest, err)
		}
	}
}

func TestCPUSignature(t *testing.T) {
	for name, want := range map[string]uint32{
		"EPYC": 0x800f12, "EPYC-v4": 0x800f12, "EPYC-Rome-v3": 0x830f10, "EPYC-Milan": 0xa00f11, "EPYC-Genoa-v2": 0xa10f10, "EPYC-Turin": 0xb00f00,
		"0xa10f11": 0xa10f11,
	} {
		if got, err := CPUSignature(name); err != nil || got != want {
			t.Errorf("%s: got %#x, %v", name, got, err)
		}
	}
	for _, name := range []string{"", "host", "EPYC-v", "epyc", "-v1", "0x100000000"} {
		if got, err := CPUSignature(name); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: got %#x, %v", name, got, err)
		}
	}
}

func FuzzSNPDigest(f *testing.F) {
	f.Add(ovmftest.AmdSev())
	f.Add(ovmftest.X64())
	f.Fuzz(func(t *testing.T, image []byte) {
		if len(image) > 4*ovmf.PageSize {
			return
		}
		guest := SNPGuest{Firmware: image, Kernel: []byte{}, VCPUs: 2, Features: SNPActive}
		if parsed, err := ovmf.Parse(image); err == nil {
			sections, _ := parsed.SEVSections()
			pages := 0
			for _, s := range sections {
				pages += s.Pages
			}
			if pages > 1024 {
				return // valid, and slow
			}
		}
		digest, err := guest.Digest()
		if err == nil && binary.LittleEndian.Uint64(digest) == 0 {
			t.Errorf("digest %x", digest)
		}
	})
}
