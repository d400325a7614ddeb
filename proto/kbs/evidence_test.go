package kbs

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"testing"

	"github.com/containerd/errdefs"
)

func snpFixture(tb testing.TB) ([]byte, *SNPEvidence) {
	tb.Helper()
	document, err := os.ReadFile("testdata/snp-genoa-evidence.json")
	if err != nil {
		tb.Fatal(err)
	}
	document = bytes.TrimSpace(document)
	var evidence SNPEvidence
	if err := DecodeStrict(document, MaxAttestation, &evidence); err != nil {
		tb.Fatal(err)
	}
	return document, &evidence
}

// The document of a stock client must come back byte for byte, or brokers would not understand ours.
func TestSNPEvidenceIsWrittenAsStockClientsDo(t *testing.T) {
	document, evidence := snpFixture(t)
	raw, err := evidence.Report.Raw()
	if err != nil {
		t.Fatal(err)
	}
	report, err := ParseSNPReport(raw)
	if err != nil {
		t.Fatal(err)
	}
	again, err := json.Marshal(SNPEvidence{Report: *report, Certificates: evidence.Certificates})
	if err != nil || !bytes.Equal(again, document) {
		t.Errorf("wrote\n%s\nwant\n%s\n%v", again, document, err)
	}
}

func TestParseSNPReport(t *testing.T) {
	_, evidence := snpFixture(t)
	genoa, err := evidence.Report.Raw()
	if err != nil {
		t.Fatal(err)
	}
	edit := func(edits map[int]byte) []byte {
		raw := bytes.Clone(genoa)
		for at, value := range edits {
			raw[at] = value
		}
		return raw
	}
	for name, tc := range map[string]struct {
		raw  []byte
		tcb  SNPTCB
		want error
	}{
		"genoa":             {genoa, SNPTCB{Bootloader: 10, SNP: 23, Microcode: 25}, nil},
		"turin":             {edit(map[int]byte{0: 5, 0x188: 0x1a, 0x189: 2, 0x180: 1, 0x181: 2, 0x182: 3, 0x183: 4, 0x186: 0, 0x38: 0, 0x3e: 0, 0x1e0: 0, 0x1e6: 0, 0x1f0: 0, 0x1f6: 0, 0x1f8: 7}), SNPTCB{FMC: new(uint8(1)), Bootloader: 2, TEE: 3, SNP: 4, Microcode: 25}, nil},
		"version 2":         {edit(map[int]byte{0: 2, 0x188: 0, 0x189: 0, 0x18a: 0}), SNPTCB{Bootloader: 10, SNP: 23, Microcode: 25}, nil},
		"unknown processor": {edit(map[int]byte{0x188: 0x18}), SNPTCB{}, errdefs.ErrInvalidArgument},
		"reserved field":    {edit(map[int]byte{0x4c: 1}), SNPTCB{}, errdefs.ErrInvalidArgument},
		"after signature":   {edit(map[int]byte{0x49f: 1}), SNPTCB{}, errdefs.ErrInvalidArgument},
		"vector too early":  {edit(map[int]byte{0x1f8: 1}), SNPTCB{}, errdefs.ErrInvalidArgument},
		"short":             {genoa[1:], SNPTCB{}, errdefs.ErrInvalidArgument},
		"empty":             {nil, SNPTCB{}, errdefs.ErrInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			report, err := ParseSNPReport(tc.raw)
			if !errors.Is(err, tc.want) {
				t.Fatalf("got %v", err)
			}
			if err != nil {
				return
			}
			got, want := report.ReportedTCB, tc.tcb
			if (got.FMC == nil) != (want.FMC == nil) || got.FMC != nil && *got.FMC != *want.FMC {
				t.Errorf("fmc %v, want %v", got.FMC, want.FMC)
			}
			if got.FMC, want.FMC = nil, nil; got != want {
				t.Errorf("TCB %+v, want %+v", got, want)
			}
		})
	}
}

func TestSNPEvidenceRefused(t *testing.T) {
	document, _ := snpFixture(t)
	for name, edit := range map[string][2]string{
		"number above 255":  {`"family_id":[0,`, `"family_id":[256,`},
		"short field":       {`"family_id":[0,`, `"family_id":[`},
		"no processor":      {`"cpuid_fam_id":25`, `"cpuid_fam_id":null`},
		"unknown member":    {`"vmpl"`, `"vmpl_":1,"vmpl"`},
		"unknown cert type": {`"VCEK"`, `"VXEK"`},
		"base64":            {`"data":[`, `"data":"","x":[`},
	} {
		t.Run(name, func(t *testing.T) {
			edited := bytes.Replace(document, []byte(edit[0]), []byte(edit[1]), 1)
			if bytes.Equal(edited, document) {
				t.Fatal("nothing was edited")
			}
			var evidence SNPEvidence
			err := DecodeStrict(edited, MaxAttestation, &evidence)
			if err == nil {
				_, err = evidence.Report.Raw()
			}
			if !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Errorf("got %v", err)
			}
		})
	}
	other := bytes.Replace(document, []byte(`"VCEK"`), []byte(`{"OTHER":"00000000-0000-0000-0000-000000000001"}`), 1)
	var evidence SNPEvidence
	if err := DecodeStrict(other, MaxAttestation, &evidence); err != nil || evidence.Certificates[0].Type != SNPOther {
		t.Errorf("other certificate: %v", err)
	}
}

func FuzzParseSNPReport(f *testing.F) {
	_, evidence := snpFixture(f)
	raw, err := evidence.Report.Raw()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		report, err := ParseSNPReport(raw)
		if err != nil {
			return
		}
		if again, err := report.Raw(); err != nil || !bytes.Equal(again, raw) {
			t.Errorf("%x became %x, %v", raw, again, err)
		}
	})
}

func FuzzSNPEvidence(f *testing.F) {
	document, _ := snpFixture(f)
	f.Add(document)
	f.Fuzz(func(t *testing.T, document []byte) {
		var evidence SNPEvidence
		if DecodeStrict(document, MaxAttestation, &evidence) != nil {
			return
		}
		if raw, err := evidence.Report.Raw(); err == nil && len(raw) != SNPReportSize {
			t.Errorf("report of %d bytes", len(raw))
		}
	})
}
