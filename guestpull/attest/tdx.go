package attest

import (
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/containerd/errdefs"
	"github.com/google/go-configfs-tsm/report"

	"github.com/coffer-project/coffer/proto/initdata"
	"github.com/coffer-project/coffer/proto/kbs"
)

// The parts of a TDREPORT that are looked at (Intel TDX Module ABI, TDREPORT_STRUCT and TDINFO_STRUCT).
const (
	tdReportSize  = 1024
	tdReportType  = 0x81 // the first byte: a report of a TD
	tdMRTDPos     = 512 + 8 + 8
	tdConfigIDPos = tdMRTDPos + 48
)

func tdxEvidence(response *report.Response, eventLog string) (*kbs.TDXEvidence, error) {
	if size := len(response.OutBlob); size == 0 || size > kbs.MaxQuote {
		return nil, fmt.Errorf("the host's quoting service gave a quote of %d bytes, not 1 to %d: %w", size, kbs.MaxQuote, errdefs.ErrUnavailable)
	}
	evidence := &kbs.TDXEvidence{Quote: base64.StdEncoding.EncodeToString(response.OutBlob)}
	events, err := readEventLog(eventLog)
	if err != nil {
		return nil, err
	}
	if events != nil {
		encoded := base64.StdEncoding.EncodeToString(events)
		evidence.EventLog = &encoded
	}
	return evidence, nil
}

// readEventLog returns nil where the firmware keeps no log.
func readEventLog(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the firmware's event log: %w: %w", err, errdefs.ErrUnavailable)
	}
	defer f.Close()
	events, err := io.ReadAll(io.LimitReader(f, kbs.MaxEventLog+1))
	if err != nil {
		return nil, fmt.Errorf("read the firmware's event log: %w: %w", err, errdefs.ErrUnavailable)
	}
	if len(events) > kbs.MaxEventLog {
		return nil, fmt.Errorf("the firmware's event log has more than %d bytes: %w", kbs.MaxEventLog, errdefs.ErrUnavailable)
	}
	return events, nil
}

// tdxConfigID returns MRCONFIGID as the TDX module reports it.
func tdxConfigID(tdReport func() ([]byte, error)) ([]byte, error) {
	return tdxField(tdReport, tdConfigIDPos, initdata.TDXMRConfigID)
}

// tdMRTD returns MRTD as the TDX module reports it.
func tdMRTD(tdReport func() ([]byte, error)) ([]byte, error) {
	return tdxField(tdReport, tdMRTDPos, sha512.Size384)
}

func tdxField(tdReport func() ([]byte, error), at, size int) ([]byte, error) {
	raw, err := tdReport()
	if err != nil {
		return nil, fmt.Errorf("the TDX module made no report: %w: %w", err, errdefs.ErrUnavailable)
	}
	if len(raw) != tdReportSize || raw[0] != tdReportType {
		return nil, fmt.Errorf("the TDX module made a report of an unknown kind: %w", errdefs.ErrUnavailable)
	}
	return raw[at : at+size : at+size], nil
}
