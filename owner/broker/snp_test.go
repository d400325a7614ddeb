package broker_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/owner/appraise"
	"github.com/coffer-project/coffer/owner/appraise/snp"
	"github.com/coffer-project/coffer/owner/appraise/snp/snptest"
	"github.com/coffer-project/coffer/owner/broker/brokertest"
	"github.com/coffer-project/coffer/owner/measure"
	"github.com/coffer-project/coffer/proto/initdata"
	"github.com/coffer-project/coffer/proto/kbs"
)

const measured = "version = \"0.1.0\"\nalgorithm = \"sha384\"\n\n[data]\nnote = \"measured\"\n"

// launch measures a guest as the processor would.
func launch(t *testing.T, kernel, cmdline string, vcpus int) []byte {
	t.Helper()
	firmware, err := os.ReadFile("../../proto/ovmf/ovmftest/ovmf_AmdSev_suffix.bin")
	if err != nil {
		t.Fatal(err)
	}
	digest, err := measure.SNPGuest{Firmware: firmware, Kernel: []byte(kernel), Cmdline: cmdline, VCPUs: vcpus, CPU: 0xa00f11, Features: measure.SNPActive}.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return digest
}

// A key leaves the broker only for the guest that the owner measured, on firmware that the owner named, with the initdata that it was
// launched with: one byte of the image less, and it stays.
func TestForgedSNPGuest(t *testing.T) {
	signer, err := snptest.New("Milan")
	if err != nil {
		t.Fatal(err)
	}
	roots, err := snp.ParseRoots(signer.Roots())
	if err != nil {
		t.Fatal(err)
	}
	b := brokertest.Start(t, brokertest.Options{RefuseSample: true, SNPTestRoots: roots})
	b.Put(t, uri, secret)
	values, err := json.Marshal(appraise.Values{
		appraise.RefSNPMeasurement: []any{hex.EncodeToString(launch(t, "kernel", "quiet", 1)), hex.EncodeToString(launch(t, "kernel", "quiet", 2))},
		appraise.RefSNPBootloader:  []any{float64(signer.TCB.Bootloader)}, appraise.RefSNPTEE: []any{float64(signer.TCB.TEE)},
		appraise.RefSNPFirmware: []any{float64(signer.TCB.SNP)}, appraise.RefSNPMicrocode: []any{float64(signer.TCB.Microcode)},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.References.Register(t.Context(), values); err != nil {
		t.Fatal(err)
	}
	_, digest, err := initdata.Digest([]byte(measured))
	if err != nil {
		t.Fatal(err)
	}
	sendMeasured := func(a *kbs.Attestation) { a.InitData = &kbs.InitData{Format: kbs.InitDataTOML, Body: measured} }
	for name, tc := range map[string]struct {
		report   snptest.Report
		edit     func(*kbs.Attestation)
		attested bool   // the evidence is genuine
		refusal  string // of the key; "" means that it is released
	}{
		"one processor":    {snptest.Report{Measurement: launch(t, "kernel", "quiet", 1)}, nil, true, ""},
		"two processors":   {snptest.Report{Measurement: launch(t, "kernel", "quiet", 2)}, nil, true, ""},
		"initdata":         {snptest.Report{Measurement: launch(t, "kernel", "quiet", 1), HostData: digest[:32]}, sendMeasured, true, ""},
		"provider's key":   {snptest.Report{Measurement: launch(t, "kernel", "quiet", 1), VLEK: true}, nil, true, ""},
		"changed kernel":   {snptest.Report{Measurement: launch(t, "kernal", "quiet", 1)}, nil, true, `"warning"`},
		"changed cmdline":  {snptest.Report{Measurement: launch(t, "kernel", "quiet init=/bin/sh", 1)}, nil, true, `"warning"`},
		"three processors": {snptest.Report{Measurement: launch(t, "kernel", "quiet", 3)}, nil, true, `"warning"`},
		"other initdata":   {snptest.Report{Measurement: launch(t, "kernel", "quiet", 1)}, sendMeasured, false, ""},
		"debugged":         {snptest.Report{Measurement: launch(t, "kernel", "quiet", 1), Policy: 0xb0000}, nil, false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t, b)
			g.snp, g.report = signer, tc.report
			g.auth()
			w := g.attest(tc.edit)
			if !tc.attested {
				refused(t, w, http.StatusUnauthorized, kbs.KindAttestation)
				return
			}
			if w.Code != http.StatusOK {
				t.Fatalf("attest: status %d %s", w.Code, w.Body)
			}
			w = g.get(nil)
			if tc.refusal == "" {
				if got := g.open(w); !bytes.Equal(got, secret) {
					t.Errorf("got %q", got)
				}
				return
			}
			refused(t, w, http.StatusUnauthorized, kbs.KindPolicyDeny)
			if detail := kbs.ParseProblem(w.Body.Bytes()).Detail; !strings.Contains(detail, tc.refusal) {
				t.Errorf("refusal %q does not say %s", detail, tc.refusal)
			}
		})
	}
}

// Roots that somebody else forged are worth nothing.
func TestForgedSNPGuestOfOtherRoots(t *testing.T) {
	signer, err := snptest.New("Genoa")
	if err != nil {
		t.Fatal(err)
	}
	other, err := snptest.New("Genoa")
	if err != nil {
		t.Fatal(err)
	}
	roots, err := snp.ParseRoots(other.Roots())
	if err != nil {
		t.Fatal(err)
	}
	g := newGuest(t, brokertest.Start(t, brokertest.Options{SNPTestRoots: roots}))
	g.snp = signer
	g.auth()
	refused(t, g.attest(nil), http.StatusUnauthorized, kbs.KindAttestation)
}
