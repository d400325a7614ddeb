package attest

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-tdx-guest/client/linuxabi"
	quotes "github.com/google/go-tdx-guest/testing/testdata"
	"github.com/google/uuid"

	"github.com/coffer-project/coffer/guestpull/attest/attesttest"
	"github.com/coffer-project/coffer/proto/kbs"
)

// genoa is the evidence of a real machine, as a stock client wrote it.
func genoa(tb testing.TB) (document []byte, report []byte, evidence *kbs.SNPEvidence) {
	tb.Helper()
	document, err := os.ReadFile("../../proto/kbs/testdata/snp-genoa-evidence.json")
	if err != nil {
		tb.Fatal(err)
	}
	document, evidence = bytes.TrimSpace(document), &kbs.SNPEvidence{}
	if err := kbs.DecodeStrict(document, kbs.MaxAttestation, evidence); err != nil {
		tb.Fatal(err)
	}
	if report, err = evidence.Report.Raw(); err != nil {
		tb.Fatal(err)
	}
	return document, report, evidence
}

// certTable writes certificates as hosts do.
func certTable(tb testing.TB, certificates ...kbs.SNPCertificate) []byte {
	tb.Helper()
	names := map[kbs.SNPCertType]string{kbs.SNPARK: abi.ArkGUID, kbs.SNPASK: abi.AskGUID, kbs.SNPVCEK: abi.VcekGUID, kbs.SNPVLEK: abi.VlekGUID, kbs.SNPOther: abi.ExtraPlatformInfoGUID}
	var table abi.CertTable
	for _, c := range certificates {
		table.Entries = append(table.Entries, abi.CertTableEntry{GUID: uuid.MustParse(names[c.Type]), RawCert: c.Data})
	}
	return table.Marshal()
}

func open(tb testing.TB, tee kbs.TEE, kernel *attesttest.Kernel, eventLog string, tdReport []byte) *TSM {
	tb.Helper()
	p, err := NewTSMWith(tee, kernel, eventLog, func() ([]byte, error) {
		if tdReport == nil {
			return nil, syscall.EIO
		}
		return tdReport, nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

// A guest on the machine that the fixture comes from must write what the stock client wrote there.
func TestSNPEvidenceOfARealMachine(t *testing.T) {
	document, raw, evidence := genoa(t)
	table := certTable(t, append(evidence.Certificates, kbs.SNPCertificate{Type: kbs.SNPOther, Data: []byte("not for verifiers")})...)
	var asked []byte
	kernel := attesttest.New("sev_guest", func(reportData []byte) ([]byte, []byte, error) {
		asked = reportData
		return raw, table, nil
	})
	p := open(t, kbs.TEESNP, kernel, "", nil)
	got, err := p.Evidence(t.Context(), []byte("nonce"))
	if err != nil || !bytes.Equal(got, document) {
		t.Fatalf("got %s, %v", got, err)
	}
	if want := append([]byte("nonce"), make([]byte, 59)...); !bytes.Equal(asked, want) {
		t.Errorf("the kernel was asked for a report over %q", asked)
	}
	if field, err := p.InitDataField(t.Context()); err != nil || !bytes.Equal(field, evidence.Report.HostData) {
		t.Errorf("HOST_DATA %x, %v", field, err)
	}
	if kernel.Entries() != 0 {
		t.Error("entries are left in configfs")
	}
	// A host that gives no certificates.
	table = nil
	if got, err = p.Evidence(t.Context(), nil); err != nil || !strings.HasSuffix(string(got), `,"cert_chain":null}`) {
		t.Errorf("without certificates: %.200s, %v", got, err)
	}
}

func TestTDXEvidenceOfARealMachine(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, size int) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, bytes.Repeat([]byte{0xa5}, size), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	log, large := file("log", 1000), file("large", kbs.MaxEventLog+1)
	for name, tc := range map[string]struct {
		quote    []byte
		eventLog string
		want     int // bytes of event log; -1 for none
		wantErr  error
	}{
		"with event log":   {quotes.RawQuote, log, 1000, nil},
		"without":          {quotes.RawQuote, filepath.Join(dir, "none"), -1, nil},
		"large event log":  {quotes.RawQuote, large, 0, errdefs.ErrUnavailable},
		"event log broken": {quotes.RawQuote, dir, 0, errdefs.ErrUnavailable},
		"empty quote":      {nil, log, 0, errdefs.ErrUnavailable},
		"large quote":      {make([]byte, kbs.MaxQuote+1), log, 0, errdefs.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			kernel := attesttest.New("tdx_guest", func([]byte) ([]byte, []byte, error) { return tc.quote, nil, nil })
			document, err := open(t, kbs.TEETDX, kernel, tc.eventLog, nil).Evidence(t.Context(), make([]byte, 48))
			if !errors.Is(err, tc.wantErr) {
				t.Fatalf("error: %v", err)
			}
			if err != nil {
				return
			}
			var got kbs.TDXEvidence
			if err := kbs.DecodeStrict(document, kbs.MaxAttestation, &got); err != nil {
				t.Fatal(err)
			}
			if raw, err := base64.StdEncoding.DecodeString(got.Quote); err != nil || !bytes.Equal(raw, tc.quote) {
				t.Errorf("quote of %d bytes, %v", len(raw), err)
			}
			size := -1
			if got.EventLog != nil {
				raw, err := base64.StdEncoding.DecodeString(*got.EventLog)
				if err != nil {
					t.Fatal(err)
				}
				size = len(raw)
			}
			if size != tc.want {
				t.Errorf("event log of %d bytes, want %d", size, tc.want)
			}
		})
	}
}

// tdReport puts what a real quote says of its guest where the TDX module puts it.
func tdReport() []byte {
	report := make([]byte, tdReportSize)
	report[0] = tdReportType
	const attributes, rtmrEnd = 48 + 120, 48 + 520 // in the quote, which has the parts of TDINFO_STRUCT in their order
	copy(report[512:], quotes.RawQuote[attributes:rtmrEnd])
	return report
}

func TestTDXConfigID(t *testing.T) {
	report := tdReport()
	want := bytes.Repeat([]byte{7}, 48)
	if !bytes.Equal(report[528:576], quotes.RawQuote[48+136:48+184]) {
		t.Fatal("MRTD is not where it should be")
	}
	copy(report[576:], want)
	kernel := attesttest.New("tdx_guest", nil)
	if got, err := open(t, kbs.TEETDX, kernel, "", report).InitDataField(t.Context()); err != nil || !bytes.Equal(got, want) {
		t.Errorf("MRCONFIGID %x, %v", got, err)
	}
	for name, bad := range map[string][]byte{"no answer": nil, "short": report[1:], "of an SGX enclave": append([]byte{0}, report[1:]...)} {
		if got, err := open(t, kbs.TEETDX, kernel, "", bad).InitDataField(t.Context()); !errors.Is(err, errdefs.ErrUnavailable) {
			t.Errorf("%s: %x, %v", name, got, err)
		}
	}
	if getReport != linuxabi.IocTdxGetReport {
		t.Errorf("the request's number is %#x, not %#x", uint64(getReport), uint64(linuxabi.IocTdxGetReport))
	}
}

func TestFaultsOfTheKernel(t *testing.T) {
	_, raw, _ := genoa(t)
	for name, tc := range map[string]struct {
		report  attesttest.Report
		data    []byte
		wantErr error
	}{
		"host does not answer": {func([]byte) ([]byte, []byte, error) { return nil, nil, syscall.EIO }, nil, errdefs.ErrUnavailable},
		"no report":            {func([]byte) ([]byte, []byte, error) { return []byte("report"), nil, nil }, nil, errdefs.ErrInvalidArgument},
		"damaged certificates": {func([]byte) ([]byte, []byte, error) { return raw, []byte("certificates"), nil }, nil, errdefs.ErrInvalidArgument},
		"long report data":     {func([]byte) ([]byte, []byte, error) { return raw, nil, nil }, make([]byte, 65), errdefs.ErrInvalidArgument},
	} {
		kernel := attesttest.New("sev_guest", tc.report)
		if got, err := open(t, kbs.TEESNP, kernel, "", nil).Evidence(t.Context(), tc.data); got != nil || !errors.Is(err, tc.wantErr) {
			t.Errorf("%s: got %.100s, %v", name, got, err)
		}
		if kernel.Entries() != 0 {
			t.Errorf("%s: entries are left in configfs", name)
		}
	}
	if _, err := NewTSMWith(kbs.TEESample, attesttest.New("sev_guest", nil), "", nil); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("a sample from configfs: %v", err)
	}
}

// A caller leaves when its context ends, the kernel finishes, and then the next caller has its turn.
func TestSlowKernel(t *testing.T) {
	document, raw, evidence := genoa(t)
	table := certTable(t, evidence.Certificates...)
	begun, finish := make(chan struct{}, 8), make(chan struct{})
	kernel := attesttest.New("sev_guest", func([]byte) ([]byte, []byte, error) {
		begun <- struct{}{}
		<-finish
		return raw, table, nil
	})
	p := open(t, kbs.TEESNP, kernel, "", nil)
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error)
	go func() {
		_, err := p.Evidence(ctx, nil)
		left <- err
	}()
	<-begun
	waiting, stop := context.WithCancel(t.Context())
	go func() {
		_, err := p.Evidence(waiting, nil)
		left <- err
	}()
	cancel()
	stop()
	for range 2 {
		if err := <-left; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	}
	close(finish)
	got, err := p.Evidence(t.Context(), nil)
	if err != nil || !json.Valid(got) || !bytes.Equal(got, document) {
		t.Errorf("after that: %.100s, %v", got, err)
	}
	if kernel.Entries() != 0 {
		t.Error("entries are left in configfs")
	}
}
