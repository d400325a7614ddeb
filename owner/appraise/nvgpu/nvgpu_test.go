package nvgpu_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/owner/appraise"
	"github.com/coffer-project/coffer/owner/appraise/collateral"
	"github.com/coffer-project/coffer/owner/appraise/nvgpu"
	"github.com/coffer-project/coffer/proto/kbs"
)

// genuine returns a real device's evidence and the nonce that it is bound to.
func genuine(tb testing.TB, name string) (*kbs.NVIDIAEvidence, []byte) {
	tb.Helper()
	raw, err := os.ReadFile("testdata/" + name + ".json")
	if err != nil {
		tb.Fatal(err)
	}
	var evidence kbs.NVIDIAEvidence
	if err := json.Unmarshal(raw, &evidence); err != nil {
		tb.Fatal(err)
	}
	report, _, err := evidence.Devices[0].Decode()
	if err != nil {
		tb.Fatal(err)
	}
	return &evidence, report[4 : 4+kbs.NVIDIANonce]
}

func encode(tb testing.TB, document any) []byte {
	tb.Helper()
	raw, err := json.Marshal(document)
	if err != nil {
		tb.Fatal(err)
	}
	return raw
}

// on is a verifier that believes NVIDIA, has its manifests, and thinks that it is a certain day.
func on(tb testing.TB, year int, month time.Month, references appraise.Values) *nvgpu.Verifier {
	tb.Helper()
	v, err := nvgpu.New(nvgpu.Options{
		References: references, Collateral: &collateral.Store{Dir: "testdata/collateral"},
		Now: func() time.Time { return time.Date(year, month, 15, 0, 0, 0, 0, time.UTC) },
	})
	if err != nil {
		tb.Fatal(err)
	}
	return v
}

func TestRealDevices(t *testing.T) {
	for name, tc := range map[string]struct {
		year   int
		month  time.Month
		class  string
		want   appraise.Status
		vector appraise.TrustVector
		claims map[string]any
	}{
		"hopper": {
			2025, 5, "gpu", appraise.Warning, appraise.TrustVector{Hardware: 2, Executables: 33, Configuration: 36},
			map[string]any{
				"arch": "Hopper", "hwmodel": "GH100 A01 GSP BROM", "x-nvidia-gpu-driver-version": "580.95.05", "x-nvidia-gpu-vbios-version": "96.00.74.00.1a",
				"x-nvidia-gpu-vbios-rim-signature-verified": true, "x-nvidia-gpu-driver-rim-fetched": false, "x-nvidia-gpu-attestation-report-cert-chain-fwid-match": true,
			},
		},
		"blackwell": {
			2026, 11, "gpu", appraise.Warning, appraise.TrustVector{Hardware: 2, Executables: 33, Configuration: 36},
			map[string]any{"arch": "Blackwell", "x-nvidia-gpu-driver-version": "575.32", "x-nvidia-gpu-vbios-version": "97.00.88.00.0f"},
		},
		// The switch measures exactly what NVIDIA's manifest for its firmware says.
		"ls10": {
			2026, 6, "switch", appraise.Affirming, appraise.TrustVector{Hardware: 2, Executables: 3, Configuration: 3},
			map[string]any{
				"arch": "LS10", "x-nvidia-switch-vbios-version": "96.10.55.00.01", "x-nvidia-switch-pdi": "203eb31ad9ed0008",
				"measres": "success", "secboot": true, "dbgstat": "disabled",
			},
		},
		// A GPU that trusts switches is not safe without them.
		"hopper-ppcie": {
			2026, 6, "gpu", appraise.Contraindicated, appraise.TrustVector{Hardware: 2, Executables: 33, Configuration: 96},
			map[string]any{"arch": "Hopper", "measres": nil},
		},
	} {
		t.Run(name, func(t *testing.T) {
			evidence, nonce := genuine(t, name)
			results, err := on(t, tc.year, tc.month, nil).VerifyDevices(t.Context(), appraise.Evidence{Raw: encode(t, evidence), ReportData: append(nonce, "and more"...)})
			if err != nil || len(results) != 1 {
				t.Fatalf("got %v, %v", results, err)
			}
			r := results[0]
			if r.Class != tc.class || r.Status != tc.want || r.Vector != tc.vector || r.PolicyID != nvgpu.PolicyID {
				t.Errorf("got %s %s %+v by %s", r.Class, r.Status, r.Vector, r.PolicyID)
			}
			for claim, want := range tc.claims {
				if got := r.Claims[claim]; got != want {
					t.Errorf("%s is %v, want %v", claim, got, want)
				}
			}
			if _, forged := r.Claims["test_roots"]; forged {
				t.Error("said to be forged")
			}
			if m, _ := r.Claims["measurements"].(map[string]any); len(m) < 31 || len(m["1"].(string)) != 96 {
				t.Errorf("got measurements %v", m)
			}
		})
	}
}

// A manifest whose certificates have expired, or are not valid yet, says nothing.
func TestManifestsHaveTheirTime(t *testing.T) {
	evidence, nonce := genuine(t, "ls10")
	for year, want := range map[int]appraise.Status{2025: appraise.Warning, 2026: appraise.Affirming, 2029: appraise.Warning} {
		results, err := on(t, year, 6, nil).VerifyDevices(t.Context(), appraise.Evidence{Raw: encode(t, evidence), ReportData: nonce})
		if err != nil || results[0].Status != want {
			t.Errorf("in %d: got %+v, %v", year, results, err)
		}
	}
}

// Nothing of a real device's evidence can be changed: whatever the byte means.
func TestTamperedReports(t *testing.T) {
	for _, name := range []string{"hopper", "blackwell", "ls10"} {
		t.Run(name, func(t *testing.T) {
			evidence, nonce := genuine(t, name)
			report, _, err := evidence.Devices[0].Decode()
			if err != nil {
				t.Fatal(err)
			}
			v := on(t, 2026, 6, nil)
			verify := func(changed []byte) error {
				e := kbs.NVIDIAEvidence{Devices: []kbs.NVIDIADevice{evidence.Devices[0]}}
				e.Devices[0].Evidence = base64.StdEncoding.EncodeToString(changed)
				_, err := v.VerifyDevices(t.Context(), appraise.Evidence{Raw: encode(t, e), ReportData: nonce})
				return err
			}
			if err := verify(report); err != nil {
				t.Fatal(err)
			}
			const head, stride = 48, 29
			for i := range report {
				if i > head && i < len(report)-2*head && i%stride != 0 { // the ends byte by byte, and all kinds of bytes between them
					continue
				}
				changed := append([]byte(nil), report...)
				changed[i] ^= 0x40
				if err := verify(changed); !errdefs.IsInvalidArgument(err) && !errdefs.IsPermissionDenied(err) {
					t.Errorf("byte %d: got %v", i, err)
				}
			}
			for _, n := range []int{0, 1, 36, 37, 44, 100, len(report) / 2, len(report) - 97, len(report) - 2} {
				if err := verify(report[:n]); !errdefs.IsInvalidArgument(err) {
					t.Errorf("first %d bytes: got %v", n, err)
				}
			}
			if err := verify(append(slices.Clip(report), 0, 0, 0)); err != nil {
				t.Errorf("zeros after the end: %v", err)
			}
			if err := verify(append(slices.Clip(report), 0, 1)); !errdefs.IsInvalidArgument(err) {
				t.Errorf("data after the end: %v", err)
			}
		})
	}
}

func TestTamperedEvidence(t *testing.T) {
	v := on(t, 2026, 6, nil)
	recode := func(d *kbs.NVIDIADevice, edit func(pem string) string) {
		raw, err := base64.StdEncoding.DecodeString(d.Certificate)
		if err != nil {
			t.Fatal(err)
		}
		d.Certificate = base64.StdEncoding.EncodeToString([]byte(edit(string(raw))))
	}
	split := func(pem string) []string {
		return strings.SplitAfter(strings.TrimSpace(pem), "-----END CERTIFICATE-----")[:5]
	}
	other, _ := genuine(t, "blackwell")
	for name, tc := range map[string]struct {
		edit func(*kbs.NVIDIAEvidence)
		want error
	}{
		"untouched": {func(*kbs.NVIDIAEvidence) {}, nil},
		"without the root": {func(e *kbs.NVIDIAEvidence) {
			recode(&e.Devices[0], func(p string) string { return strings.Join(split(p)[:4], "\n") })
		}, nil},
		"other device's chain":  {func(e *kbs.NVIDIAEvidence) { e.Devices[0].Certificate = other.Devices[0].Certificate }, errdefs.ErrPermissionDenied},
		"other device's report": {func(e *kbs.NVIDIAEvidence) { e.Devices[0].Evidence = other.Devices[0].Evidence }, errdefs.ErrPermissionDenied},
		"other generation":      {func(e *kbs.NVIDIAEvidence) { e.Devices[0].Arch = kbs.NVIDIABlackwell }, errdefs.ErrPermissionDenied},
		"a switch":              {func(e *kbs.NVIDIAEvidence) { e.Devices[0].Arch = kbs.NVIDIALS10 }, errdefs.ErrPermissionDenied},
		"unknown generation":    {func(e *kbs.NVIDIAEvidence) { e.Devices[0].Arch = "VOLTA" }, errdefs.ErrInvalidArgument},
		"chain without the leaf": {func(e *kbs.NVIDIAEvidence) {
			recode(&e.Devices[0], func(p string) string { return strings.Join(split(p)[1:], "\n") })
		}, errdefs.ErrPermissionDenied},
		"chain without the middle": {func(e *kbs.NVIDIAEvidence) {
			recode(&e.Devices[0], func(p string) string { c := split(p); return c[0] + "\n" + c[2] + c[3] + c[4] })
		}, errdefs.ErrPermissionDenied},
		"chain in another order": {func(e *kbs.NVIDIAEvidence) {
			recode(&e.Devices[0], func(p string) string { c := split(p); return c[0] + "\n" + c[2] + c[1] + c[3] + c[4] })
		}, errdefs.ErrPermissionDenied},
		"one certificate": {func(e *kbs.NVIDIAEvidence) { recode(&e.Devices[0], func(p string) string { return split(p)[0] }) }, errdefs.ErrInvalidArgument},
		"no certificate":  {func(e *kbs.NVIDIAEvidence) { recode(&e.Devices[0], func(string) string { return "hello" }) }, errdefs.ErrInvalidArgument},
		"endless chain": {func(e *kbs.NVIDIAEvidence) {
			recode(&e.Devices[0], func(p string) string { return strings.Repeat(split(p)[4]+"\n", 9) })
		}, errdefs.ErrInvalidArgument},
		"no device":      {func(e *kbs.NVIDIAEvidence) { e.Devices = nil }, errdefs.ErrInvalidArgument},
		"device twice":   {func(e *kbs.NVIDIAEvidence) { e.Devices = append(e.Devices, e.Devices[0]) }, errdefs.ErrPermissionDenied},
		"not base64":     {func(e *kbs.NVIDIAEvidence) { e.Devices[0].Evidence = "!" }, errdefs.ErrInvalidArgument},
		"too many":       {func(e *kbs.NVIDIAEvidence) { e.Devices = make([]kbs.NVIDIADevice, 33) }, errdefs.ErrInvalidArgument},
		"huge report":    {func(e *kbs.NVIDIAEvidence) { e.Devices[0].Evidence = strings.Repeat("A", 16<<10) }, errdefs.ErrInvalidArgument},
		"one is damaged": {func(e *kbs.NVIDIAEvidence) { e.Devices = append(e.Devices, kbs.NVIDIADevice{Arch: kbs.NVIDIAHopper}) }, errdefs.ErrInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			evidence, nonce := genuine(t, "hopper")
			tc.edit(evidence)
			results, err := v.VerifyDevices(t.Context(), appraise.Evidence{Raw: encode(t, evidence), ReportData: nonce})
			if !errors.Is(err, tc.want) || err != nil && results != nil {
				t.Errorf("got %v, %v", results, err)
			}
		})
	}
	evidence, nonce := genuine(t, "hopper")
	for name, data := range map[string][]byte{"other session": nonce[1:], "no session": nil} {
		if _, err := v.VerifyDevices(t.Context(), appraise.Evidence{Raw: encode(t, evidence), ReportData: data}); !errdefs.IsPermissionDenied(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	old, nonce := genuine(t, "hopper-no-fwid")
	if _, err := v.VerifyDevices(t.Context(), appraise.Evidence{Raw: encode(t, old), ReportData: nonce}); !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), "newer driver") {
		t.Errorf("report without firmware: %v", err)
	}
}
