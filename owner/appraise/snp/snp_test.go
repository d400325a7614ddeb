package snp

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-sev-guest/verify"
	libdata "github.com/google/go-sev-guest/verify/testdata"

	"github.com/coffer-project/coffer/owner/appraise"
	"github.com/coffer-project/coffer/owner/appraise/snp/snptest"
	"github.com/coffer-project/coffer/proto/kbs"
)

// The real certificates are valid then; the tests look at no other clock.
var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func verifier(tb testing.TB, o Options) *Verifier {
	tb.Helper()
	if o.Now == nil {
		o.Now = func() time.Time { return now }
	}
	v, err := New(o)
	if err != nil {
		tb.Fatal(err)
	}
	return v
}

func file(tb testing.TB, name string) []byte {
	tb.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		tb.Fatal(err)
	}
	return raw
}

func genoa(tb testing.TB) *kbs.SNPEvidence {
	tb.Helper()
	var evidence kbs.SNPEvidence
	if err := json.Unmarshal(file(tb, "genoa-evidence.json"), &evidence); err != nil {
		tb.Fatal(err)
	}
	return &evidence
}

func document(tb testing.TB, raw []byte, certificates ...kbs.SNPCertificate) json.RawMessage {
	tb.Helper()
	report, err := kbs.ParseSNPReport(raw)
	if err != nil {
		tb.Fatal(err)
	}
	return encode(tb, &kbs.SNPEvidence{Report: *report, Certificates: certificates})
}

func encode(tb testing.TB, evidence *kbs.SNPEvidence) json.RawMessage {
	tb.Helper()
	out, err := json.Marshal(evidence)
	if err != nil {
		tb.Fatal(err)
	}
	return out
}

func TestRealEvidence(t *testing.T) {
	genoaEvidence := genoa(t)
	for name, tc := range map[string]struct {
		raw        json.RawMessage
		reportData []byte
		references appraise.Values
		status     appraise.Status
	}{
		"genoa, trusted": {
			encode(t, genoaEvidence), genoaEvidence.Report.ReportData,
			appraise.Values{
				appraise.RefSNPMeasurement: []any{"00", strings.ToUpper(hex.EncodeToString(genoaEvidence.Report.Measurement))},
				appraise.RefSNPBootloader:  []any{10.0}, appraise.RefSNPTEE: 0.0,
				appraise.RefSNPFirmware: []any{22.0, 23.0}, appraise.RefSNPMicrocode: []any{25.0},
			}, appraise.Affirming,
		},
		"genoa, nothing trusted": {encode(t, genoaEvidence), genoaEvidence.Report.ReportData, nil, appraise.Contraindicated},
		"genoa, other image": {
			encode(t, genoaEvidence), genoaEvidence.Report.ReportData,
			appraise.Values{
				appraise.RefSNPMeasurement: "00", appraise.RefSNPBootloader: 10.0, appraise.RefSNPTEE: 0.0, appraise.RefSNPFirmware: 23.0, appraise.RefSNPMicrocode: 25.0,
			}, appraise.Warning,
		},
	} {
		t.Run(name, func(t *testing.T) {
			result, err := verifier(t, Options{References: tc.references}).Verify(t.Context(), appraise.Evidence{Raw: tc.raw, ReportData: tc.reportData})
			if err != nil {
				t.Fatal(err)
			}
			if result.Status != tc.status || result.Claims["product"] != "Genoa" || result.PolicyID != PolicyID ||
				result.ReportData != hex.EncodeToString(tc.reportData) {
				t.Errorf("got %+v", result)
			}
		})
	}
}

// The claims must have the names and forms that policies written for Trustee look for.
func TestClaimsAreTrustees(t *testing.T) {
	evidence := genoa(t)
	result, err := verifier(t, Options{}).Verify(t.Context(), appraise.Evidence{Raw: encode(t, evidence), ReportData: evidence.Report.ReportData})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(result.Claims)
	if err != nil {
		t.Fatal(err)
	}
	var claims map[string]any
	if err := json.Unmarshal(raw, &claims); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]any{
		"policy_abi_major": 0.0, "policy_abi_minor": 0.0, "policy_smt_allowed": true, "policy_migrate_ma": false,
		"policy_debug_allowed": false, "policy_single_socket": false,
		"reported_tcb_bootloader": 10.0, "reported_tcb_tee": 0.0, "reported_tcb_snp": 23.0, "reported_tcb_microcode": 25.0,
		"platform_tsme_enabled": false, "platform_smt_enabled": true,
		"measurement": "6a6519d757e68c2e939c9dbbbc1828498e8de35d2766dd05f1a2cca5059d0cf4ae62a36d75c837974dd50b315506e73e",
		"init_data":   strings.Repeat("00", 32),
		"report_data": hex.EncodeToString(evidence.Report.ReportData), "chip_id": hex.EncodeToString(evidence.Report.ChipID),
	} {
		if claims[name] != want {
			t.Errorf("%s is %v, want %v", name, claims[name], want)
		}
	}
	if _, ok := claims["test_roots"]; ok {
		t.Error("a real report counts as forged")
	}
}

// A bit that changes anywhere, in the report or in the certificate, must be noticed.
func TestTampering(t *testing.T) {
	evidence := genoa(t)
	v := verifier(t, Options{})
	raw, err := evidence.Report.Raw()
	if err != nil {
		t.Fatal(err)
	}
	check := func(t *testing.T, where string, at int, changed *kbs.SNPEvidence) {
		t.Helper()
		_, err := v.Verify(t.Context(), appraise.Evidence{Raw: encode(t, changed), ReportData: changed.Report.ReportData})
		if !errors.Is(err, errdefs.ErrPermissionDenied) && !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s byte %#x: %v", where, at, err)
		}
	}
	parsed := 0
	for at := 0; at < len(raw); at += 5 {
		tampered := bytes.Clone(raw)
		tampered[at] ^= 1
		report, err := kbs.ParseSNPReport(tampered)
		if err != nil {
			continue // the form has no room for it
		}
		parsed++
		check(t, "report", at, &kbs.SNPEvidence{Report: *report, Certificates: evidence.Certificates})
	}
	if parsed < 100 {
		t.Errorf("only %d changed reports were appraised", parsed)
	}
	certificate := evidence.Certificates[0]
	for at := 0; at < len(certificate.Data); at += 41 {
		tampered := bytes.Clone(certificate.Data)
		tampered[at] ^= 1
		check(t, "certificate", at, &kbs.SNPEvidence{Report: evidence.Report, Certificates: []kbs.SNPCertificate{{Type: certificate.Type, Data: tampered}}})
	}
}

// The library's report of a Milan machine, of version 2, is of a guest that allows debugging, so it is refused for that alone.
func TestRealMilan(t *testing.T) {
	v := verifier(t, Options{})
	raw := document(t, libdata.AttestationBytes, kbs.SNPCertificate{Type: kbs.SNPVCEK, Data: libdata.VcekBytes})
	var evidence kbs.SNPEvidence
	if err := json.Unmarshal(raw, &evidence); err != nil {
		t.Fatal(err)
	}
	key, err := v.findKey(t.Context(), &evidence)
	if err != nil || key.product != "Milan" {
		t.Fatalf("got %+v, %v", key, err)
	}
	if err := verify.SnpReportSignature(libdata.AttestationBytes, key.cert); err != nil {
		t.Error(err)
	}
	if err := checkTCB(&evidence.Report, key); err != nil {
		t.Error(err)
	}
	_, err = v.Verify(t.Context(), appraise.Evidence{Raw: raw, ReportData: evidence.Report.ReportData})
	if !errors.Is(err, errdefs.ErrPermissionDenied) || !strings.Contains(err.Error(), "debugged") {
		t.Errorf("got %v", err)
	}
}

// The one public report that a cloud provider's key signed was asked for at VMPL 1, so it is refused for that alone.
func TestRealVLEK(t *testing.T) {
	at := time.Date(2025, 6, 1, 0, 0, 0, 0, time.UTC)
	v := verifier(t, Options{Now: func() time.Time { return at }})
	raw := file(t, "milan-vlek-report.bin")
	report, err := kbs.ParseSNPReport(raw)
	if err != nil {
		t.Fatal(err)
	}
	evidence := &kbs.SNPEvidence{Report: *report, Certificates: []kbs.SNPCertificate{{Type: kbs.SNPVLEK, Data: file(t, "milan-vlek.der")}}}
	key, err := v.findKey(t.Context(), evidence)
	if err != nil || key.product != "Milan" || key.csp == "" {
		t.Fatalf("got %+v, %v", key, err)
	}
	if err := verify.SnpReportSignature(raw, key.cert); err != nil {
		t.Error(err)
	}
	if err := checkTCB(report, key); err != nil {
		t.Error(err)
	}
	_, err = v.Verify(t.Context(), appraise.Evidence{Raw: encode(t, evidence), ReportData: report.ReportData})
	if !errors.Is(err, errdefs.ErrPermissionDenied) || !strings.Contains(err.Error(), "VMPL 1") {
		t.Errorf("got %v", err)
	}
	at = now // the certificate has expired
	if _, err := v.findKey(t.Context(), evidence); !errors.Is(err, errdefs.ErrPermissionDenied) {
		t.Errorf("expired: %v", err)
	}
}

// signers are made once: their keys take a while.
var signers = sync.OnceValue(func() map[string]*snptest.Signer {
	all := map[string]*snptest.Signer{}
	for _, product := range []string{"Milan", "Genoa", "Turin"} {
		s, err := snptest.New(product)
		if err != nil {
			panic(err)
		}
		all[product] = s
	}
	return all
})

func forgedVerifier(t *testing.T, s *snptest.Signer, o Options) *Verifier {
	t.Helper()
	roots, err := ParseRoots(s.Roots())
	if err != nil {
		t.Fatal(err)
	}
	if o.TestRoots = roots; o.Now == nil {
		o.Now = time.Now
	}
	return verifier(t, o)
}

func forge(t *testing.T, s *snptest.Signer, r snptest.Report) json.RawMessage {
	t.Helper()
	raw, err := s.Evidence(r)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func trusted(s *snptest.Signer, measurement []byte) appraise.Values {
	return appraise.Values{
		appraise.RefSNPMeasurement: hex.EncodeToString(measurement),
		appraise.RefSNPBootloader:  float64(s.TCB.Bootloader), appraise.RefSNPTEE: float64(s.TCB.TEE),
		appraise.RefSNPFirmware: float64(s.TCB.SNP), appraise.RefSNPMicrocode: float64(s.TCB.Microcode),
	}
}

func TestForgedSigner(t *testing.T) {
	measurement := bytes.Repeat([]byte{7}, 48)
	for product, s := range signers() {
		for name, vlek := range map[string]bool{"chip's key": false, "provider's key": true} {
			t.Run(product+" "+name, func(t *testing.T) {
				e := appraise.Evidence{
					Raw:        forge(t, s, snptest.Report{ReportData: []byte("bound"), HostData: []byte("digest"), Measurement: measurement, VLEK: vlek}),
					ReportData: []byte("bound"), InitDataDigest: []byte("digest"),
				}
				result, err := forgedVerifier(t, s, Options{References: trusted(s, measurement)}).Verify(t.Context(), e)
				if err != nil {
					t.Fatal(err)
				}
				if result.Status != appraise.Affirming || result.PolicyID != ForgedPolicyID || result.Claims["product"] != product || result.Claims["test_roots"] != true {
					t.Errorf("got %+v", result)
				}
				if _, err := verifier(t, Options{}).Verify(t.Context(), e); !errors.Is(err, errdefs.ErrPermissionDenied) {
					t.Errorf("AMD's roots: %v", err)
				}
			})
		}
	}
	evidence := genoa(t)
	_, err := forgedVerifier(t, signers()["Genoa"], Options{}).Verify(t.Context(), appraise.Evidence{Raw: encode(t, evidence), ReportData: evidence.Report.ReportData})
	if !errors.Is(err, errdefs.ErrPermissionDenied) {
		t.Errorf("real evidence with forged roots: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	s, other := signers()["Milan"], signers()["Genoa"]
	for name, tc := range map[string]struct {
		report   snptest.Report
		evidence appraise.Evidence
		words    string
	}{
		"other session":    {snptest.Report{ReportData: []byte("x")}, appraise.Evidence{ReportData: []byte("y")}, "this session"},
		"other initdata":   {snptest.Report{HostData: []byte("x")}, appraise.Evidence{InitDataDigest: []byte("y")}, "initdata"},
		"no initdata":      {snptest.Report{}, appraise.Evidence{InitDataDigest: []byte("y")}, "initdata"},
		"debug":            {snptest.Report{Policy: 0xb0000}, appraise.Evidence{}, "debugged"},
		"VMPL 1":           {snptest.Report{Edit: func(r *kbs.SNPReport) { r.VMPL = 1 }}, appraise.Evidence{}, "VMPL 1"},
		"other chip":       {snptest.Report{Edit: func(r *kbs.SNPReport) { r.ChipID = other.ChipID }}, appraise.Evidence{}, "another chip"},
		"masked chip":      {snptest.Report{Edit: func(r *kbs.SNPReport) { r.ChipID = make([]byte, 64) }}, appraise.Evidence{}, "another chip"},
		"older firmware":   {snptest.Report{Edit: func(r *kbs.SNPReport) { r.ReportedTCB.SNP-- }}, appraise.Evidence{}, "firmware versions"},
		"newer firmware":   {snptest.Report{Edit: func(r *kbs.SNPReport) { r.ReportedTCB.Microcode++ }}, appraise.Evidence{}, "firmware versions"},
		"rolled back":      {snptest.Report{Edit: func(r *kbs.SNPReport) { r.CurrentTCB.SNP-- }}, appraise.Evidence{}, "above its current"},
		"unknown policy":   {snptest.Report{Policy: 1<<40 | 1<<17}, appraise.Evidence{}, ""},
		"unsigned":         {snptest.Report{Edit: func(r *kbs.SNPReport) { r.KeyInfo = 7 << 2 }}, appraise.Evidence{}, "not signed"},
		"key of VLEK":      {snptest.Report{Edit: func(r *kbs.SNPReport) { r.KeyInfo = 1 << 2 }}, appraise.Evidence{}, "no certificate"},
		"unknown model":    {snptest.Report{Edit: func(r *kbs.SNPReport) { r.CPUFamily, r.CPUModel = new(uint8(0x1a)), new(uint8(0x50)); setFMC(r) }}, appraise.Evidence{}, "product line"},
		"other product":    {snptest.Report{Edit: func(r *kbs.SNPReport) { r.CPUModel = new(uint8(0x11)) }}, appraise.Evidence{}, "no root"},
		"unknown version":  {snptest.Report{Edit: func(r *kbs.SNPReport) { r.Version = 9; r.LaunchMit, r.CurrentMit = new(uint64), new(uint64) }}, appraise.Evidence{}, "signed"},
		"other algorithm":  {snptest.Report{Edit: func(r *kbs.SNPReport) { r.SigAlgo = 2 }}, appraise.Evidence{}, "signed"},
		"nothing to bind":  {snptest.Report{}, appraise.Evidence{ReportData: []byte{}}, "this session"},
		"unknown key bits": {snptest.Report{Edit: func(r *kbs.SNPReport) { r.KeyInfo |= 1 << 9 }}, appraise.Evidence{}, "signer info"},
	} {
		t.Run(name, func(t *testing.T) {
			if tc.evidence.ReportData == nil {
				tc.evidence.ReportData, tc.report.ReportData = []byte("x"), []byte("x")
			}
			tc.evidence.Raw = forge(t, s, tc.report)
			_, err := forgedVerifier(t, s, Options{}).Verify(t.Context(), tc.evidence)
			if !errors.Is(err, errdefs.ErrPermissionDenied) && !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), tc.words) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func setFMC(r *kbs.SNPReport) {
	for _, tcb := range []*kbs.SNPTCB{&r.CurrentTCB, &r.ReportedTCB, &r.CommittedTCB, &r.LaunchTCB} {
		tcb.FMC = new(uint8(1))
	}
}

func TestJudgement(t *testing.T) {
	s := signers()["Milan"]
	measurement := bytes.Repeat([]byte{7}, 48)
	options := appraise.Values{
		appraise.RefSNPSMTEnabled: true, appraise.RefSNPTSMEEnabled: false, appraise.RefSNPABIMajor: 0.0, appraise.RefSNPABIMinor: 0.0,
		appraise.RefSNPSingleSocket: false, appraise.RefSNPSMTAllowed: true,
	}
	for name, tc := range map[string]struct {
		report     snptest.Report
		references appraise.Values
		want       appraise.TrustVector
	}{
		"options not named": {snptest.Report{}, nil, appraise.TrustVector{Executables: 3, Hardware: 2, Configuration: 3}},
		"options as named":  {snptest.Report{}, options, appraise.TrustVector{Executables: 3, Hardware: 2, Configuration: 2}},
		"migration agent":   {snptest.Report{Policy: 0x70000}, options, appraise.TrustVector{Executables: 3, Hardware: 2, Configuration: 96}},
		"not committed": {
			snptest.Report{Edit: func(r *kbs.SNPReport) { r.CommittedTCB.SNP-- }}, nil,
			appraise.TrustVector{Executables: 3, Hardware: 32, Configuration: 3},
		},
		"firmware not named": {snptest.Report{}, appraise.Values{appraise.RefSNPMicrocode: 1.0}, appraise.TrustVector{Executables: 3, Hardware: 97, Configuration: 3}},
	} {
		t.Run(name, func(t *testing.T) {
			tc.report.ReportData, tc.report.Measurement = []byte("x"), measurement
			references := trusted(s, measurement)
			maps.Copy(references, tc.references)
			result, err := forgedVerifier(t, s, Options{References: references}).Verify(t.Context(), appraise.Evidence{Raw: forge(t, s, tc.report), ReportData: []byte("x")})
			if err != nil || result.Vector != tc.want || result.Status != tc.want.Status() {
				t.Errorf("got %+v, %v", result, err)
			}
		})
	}
	turin := signers()["Turin"]
	for want, fmc := range map[int8]float64{appraise.HardwareGenuine: 2, appraise.HardwareUnknown: 3} {
		references := trusted(turin, measurement)
		references[appraise.RefSNPFMC] = []any{fmc}
		result, err := forgedVerifier(t, turin, Options{References: references}).Verify(t.Context(),
			appraise.Evidence{Raw: forge(t, turin, snptest.Report{ReportData: []byte("x"), Measurement: measurement}), ReportData: []byte("x")})
		if err != nil || result.Vector.Hardware != want {
			t.Errorf("FMC %v: got %+v, %v", fmc, result, err)
		}
	}
	fault := errors.New("store is down")
	v := forgedVerifier(t, s, Options{References: broken{fault}})
	if _, err := v.Verify(t.Context(), appraise.Evidence{Raw: forge(t, s, snptest.Report{ReportData: []byte("x")}), ReportData: []byte("x")}); !errors.Is(err, fault) {
		t.Errorf("got %v", err)
	}
}

type broken struct{ err error }

func (b broken) Reference(context.Context, string) (any, error) { return nil, b.err }

func BenchmarkVerify(b *testing.B) {
	evidence := genoa(b)
	v := verifier(b, Options{})
	e := appraise.Evidence{Raw: encode(b, evidence), ReportData: evidence.Report.ReportData}
	for b.Loop() {
		if _, err := v.Verify(b.Context(), e); err != nil {
			b.Fatal(err)
		}
	}
}

func FuzzVerify(f *testing.F) {
	f.Add([]byte(encode(f, genoa(f))))
	v := verifier(f, Options{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		result, err := v.Verify(t.Context(), appraise.Evidence{Raw: raw, ReportData: []byte("x")})
		if err == nil {
			t.Errorf("accepted %q as %+v", raw, result)
		}
	})
}
