// Package evidence tests the guest's attester against the owner's verifiers: the two share nothing but the format.
package evidence

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-sev-guest/abi"
	"github.com/google/uuid"

	"github.com/coffer-project/coffer/guestpull/attest"
	"github.com/coffer-project/coffer/guestpull/attest/attesttest"
	guestkbs "github.com/coffer-project/coffer/guestpull/kbs"
	"github.com/coffer-project/coffer/owner/appraise"
	"github.com/coffer-project/coffer/owner/appraise/snp"
	"github.com/coffer-project/coffer/owner/appraise/snp/snptest"
	"github.com/coffer-project/coffer/owner/appraise/tdx"
	"github.com/coffer-project/coffer/owner/broker/brokertest"
	"github.com/coffer-project/coffer/proto/initdata"
	"github.com/coffer-project/coffer/proto/kbs"
)

const (
	uri      = "kbs:///default/key/1"
	secret   = "the key of an image"
	measured = "version = \"0.1.0\"\nalgorithm = \"sha384\"\n\n[data]\nnote = \"measured\"\n"
	other    = "version = \"0.1.0\"\nalgorithm = \"sha384\"\n\n[data]\nnote = \"another\"\n"
)

func digest(t *testing.T, document string) []byte {
	t.Helper()
	_, sum, err := initdata.Digest([]byte(document))
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

// machine is a guest on a processor that signer stands for, launched as launch says. table is what its host gives with reports.
func machine(t *testing.T, signer *snptest.Signer, launch snptest.Report, table []byte) *attest.TSM {
	t.Helper()
	kernel := attesttest.New("sev_guest", func(reportData []byte) (report, aux []byte, err error) {
		fresh := launch
		fresh.ReportData = reportData
		report, err = signer.Sign(fresh)
		return report, table, err
	})
	p, err := attest.NewTSMWith(kbs.TEESNP, kernel, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func certificates(der []byte) []byte {
	table := abi.CertTable{Entries: []abi.CertTableEntry{
		{GUID: uuid.MustParse(abi.ExtraPlatformInfoGUID), RawCert: []byte("what a cloud adds")}, {GUID: uuid.MustParse(abi.VcekGUID), RawCert: der},
	}}
	return table.Marshal()
}

// site is a broker that releases a key to guests with one measurement, under forged roots.
func site(t *testing.T, signer *snptest.Signer, measurement []byte) *brokertest.Broker {
	t.Helper()
	roots, err := snp.ParseRoots(signer.Roots())
	if err != nil {
		t.Fatal(err)
	}
	b := brokertest.Start(t, brokertest.Options{RefuseSample: true, SNPTestRoots: roots})
	b.Put(t, uri, []byte(secret))
	trusted := appraise.Values{
		appraise.RefSNPMeasurement: []any{hex.EncodeToString(measurement)},
		appraise.RefSNPBootloader:  []any{signer.TCB.Bootloader}, appraise.RefSNPTEE: []any{signer.TCB.TEE},
		appraise.RefSNPFirmware: []any{signer.TCB.SNP}, appraise.RefSNPMicrocode: []any{signer.TCB.Microcode},
	}
	if signer.TCB.FMC != nil {
		trusted[appraise.RefSNPFMC] = []any{*signer.TCB.FMC}
	}
	values, err := json.Marshal(trusted)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.References.Register(t.Context(), values); err != nil {
		t.Fatal(err)
	}
	return b
}

// A guest that was measured gets its key, from the first report to the last byte; the same guest with anything changed does not.
func TestSNPGuestAndBroker(t *testing.T) {
	measurement := bytes.Repeat([]byte{0x4d}, 48)
	for _, product := range []string{"Milan", "Genoa", "Turin"} {
		t.Run(product, func(t *testing.T) {
			signer, err := snptest.New(product)
			if err != nil {
				t.Fatal(err)
			}
			foreign, err := snptest.New(product)
			if err != nil {
				t.Fatal(err)
			}
			b, table := site(t, signer, measurement), certificates(signer.Certificate())
			bound := snptest.Report{Measurement: measurement, HostData: digest(t, measured)[:32]}
			for name, tc := range map[string]struct {
				machine *attest.TSM
				sent    string
				wantErr error
			}{
				"sound":              {machine(t, signer, bound, table), measured, nil},
				"no initdata sent":   {machine(t, signer, bound, table), "", nil},
				"other initdata":     {machine(t, signer, bound, table), other, errdefs.ErrPermissionDenied},
				"other measurement":  {machine(t, signer, snptest.Report{Measurement: bytes.Repeat([]byte{0x4e}, 48), HostData: bound.HostData}, table), measured, errdefs.ErrPermissionDenied},
				"other processor":    {machine(t, foreign, bound, certificates(foreign.Certificate())), measured, errdefs.ErrPermissionDenied},
				"foreign chip's key": {machine(t, foreign, bound, table), measured, errdefs.ErrPermissionDenied},
				"no certificates":    {machine(t, signer, bound, nil), measured, errdefs.ErrPermissionDenied},
			} {
				client, err := guestkbs.New(guestkbs.Options{URL: b.URL, Attester: tc.machine, InitData: []byte(tc.sent), Backoff: time.Millisecond})
				if err != nil {
					t.Fatal(err)
				}
				got, err := client.Resource(t.Context(), uri)
				if !errors.Is(err, tc.wantErr) || err == nil && string(got) != secret {
					t.Errorf("%s: got %d bytes, %v", name, len(got), err)
				}
			}
		})
	}
}

// What the guest compares its initdata with is what the broker's verifier compares it with.
func TestGuestAndVerifierAgreeOnInitData(t *testing.T) {
	quote, err := os.ReadFile("../../owner/appraise/tdx/testdata/quote-v4.bin")
	if err != nil {
		t.Fatal(err)
	}
	const header, attributes, configID, reportData, end = 48, 48 + 120, 48 + 184, 48 + 520, 48 + 584
	report := make([]byte, 1024) // as the TDX module reports this very guest
	report[0] = 0x81
	copy(report[512:], quote[attributes:reportData])
	kernel := attesttest.New("tdx_guest", func([]byte) (out, aux []byte, err error) { return quote, nil, nil })
	guest, err := attest.NewTSMWith(kbs.TEETDX, kernel, t.TempDir()+"/none", func() ([]byte, error) { return report, nil })
	if err != nil {
		t.Fatal(err)
	}
	raw, err := guest.Evidence(t.Context(), make([]byte, 48))
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := tdx.New(tdx.Options{Now: func() time.Time { return time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC) }})
	if err != nil {
		t.Fatal(err)
	}
	field, err := guest.InitDataField(t.Context())
	if err != nil || !bytes.Equal(field, quote[configID:configID+48]) {
		t.Fatalf("guest reads MRCONFIGID %x, %v", field, err)
	}
	evidence := appraise.Evidence{Raw: raw, ReportData: quote[reportData:end]}
	result, err := verifier.Verify(t.Context(), evidence)
	if err != nil || result.InitData != hex.EncodeToString(field) {
		t.Fatalf("guest reads MRCONFIGID %x, verifier %+v, %v", field, result, err)
	}
	// Both refuse a document that this guest was not launched with.
	evidence.InitDataDigest = digest(t, measured)
	if _, err := verifier.Verify(t.Context(), evidence); !errors.Is(err, errdefs.ErrPermissionDenied) {
		t.Errorf("verifier: %v", err)
	}
	if _, err := attest.CheckInitData(t.Context(), guest, evidence.InitDataDigest); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("guest: %v", err)
	}
	// And for SNP, where the host gives the document that it launched the guest with, and then another one.
	signer, err := snptest.New("Genoa")
	if err != nil {
		t.Fatal(err)
	}
	launched := machine(t, signer, snptest.Report{HostData: digest(t, measured)[:32]}, nil)
	if attested, err := attest.CheckInitData(t.Context(), launched, digest(t, measured)); err != nil || !attested {
		t.Errorf("launched with this document: %v, %v", attested, err)
	}
	for name, given := range map[string][]byte{"another": digest(t, other), "none": nil} {
		if _, err := attest.CheckInitData(t.Context(), launched, given); !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(err.Error(), "snp") {
			t.Errorf("launched with a document and given %s: %v", name, err)
		}
	}
}
