package nvgpu

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/coffer-project/coffer/owner/appraise"
	"github.com/coffer-project/coffer/owner/appraise/collateral"
	"github.com/coffer-project/coffer/proto/kbs"
)

// seeds calls add with the documents of all real devices.
func seeds(f *testing.F, add func(document []byte, evidence *kbs.NVIDIAEvidence)) {
	f.Helper()
	names, err := filepath.Glob("testdata/*.json")
	if err != nil || len(names) == 0 {
		f.Fatalf("got %v, %v", names, err)
	}
	for _, name := range names {
		raw, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		var evidence kbs.NVIDIAEvidence
		if err := json.Unmarshal(raw, &evidence); err != nil {
			f.Fatal(err)
		}
		add(raw, &evidence)
	}
}

// What is read of a report lies within it, and what policies see of it can be written as JSON.
func FuzzReport(f *testing.F) {
	seeds(f, func(_ []byte, e *kbs.NVIDIAEvidence) {
		report, _, err := e.Devices[0].Decode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(report)
	})
	files := &collateral.Store{Dir: f.TempDir()}
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := parseReport(raw)
		if err != nil {
			return
		}
		if len(r.signed)+len(r.signature) > len(raw) || len(r.signature) != signatureSize || len(r.measurements) == 0 {
			t.Fatalf("read %d and %d of %d bytes", len(r.signed), len(r.signature), len(raw))
		}
		settings, err := r.settings()
		if err != nil {
			return
		}
		if _, err := json.Marshal(settings); err != nil {
			t.Fatal(err)
		}
		for arch := range models {
			driver, firmware := manifestNames(arch, settings)
			for _, name := range []string{driver, firmware} {
				// Names come from devices: whatever they say, the store must keep within its tree.
				_, _ = files.Get(t.Context(), "https://"+rimHost+"/v1/rim/"+name)
			}
		}
	})
}

// Nothing that was not signed is believed, whatever its shape.
func FuzzEvidence(f *testing.F) {
	seeds(f, func(raw []byte, _ *kbs.NVIDIAEvidence) { f.Add(raw) })
	v, err := New(Options{})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if results, err := v.VerifyDevices(t.Context(), appraise.Evidence{Raw: raw, ReportData: []byte("of no real device")}); err == nil {
			t.Fatalf("believed %+v", results)
		}
	})
}

// Manifests come over the network, too.
func FuzzManifest(f *testing.F) {
	names, err := filepath.Glob("testdata/collateral/rim.attestation.nvidia.com/v1/rim/*")
	if err != nil || len(names) == 0 {
		f.Fatalf("got %v, %v", names, err)
	}
	for _, name := range names {
		raw, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Add([]byte(`{"rim":"PGE+"}`))
	v, err := New(Options{})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if m, err := v.parseManifest(&collateral.Piece{Body: raw}); err == nil && (len(m.golden) == 0 || m.version == "") {
			t.Fatalf("believed %+v", m)
		}
	})
}
