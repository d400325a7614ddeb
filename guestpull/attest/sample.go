package attest

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/kbs"
)

// maxReportData is the largest report data field of a TEE, in bytes.
const maxReportData = 64

// Sample is an Attester for development on machines without a TEE. Its evidence is unsigned and proves nothing; brokers refuse it
// unless they were told to accept it.
type Sample struct{}

// NewSample returns a Sample.
func NewSample() *Sample { return &Sample{} }

// TEE implements Attester.
func (*Sample) TEE() string { return string(kbs.TEESample) }

// Evidence implements Attester.
func (*Sample) Evidence(ctx context.Context, reportData []byte) (json.RawMessage, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("collect sample evidence: %w", err)
	}
	if len(reportData) > maxReportData {
		return nil, fmt.Errorf("collect sample evidence: report data of %d bytes, at most %d fit: %w", len(reportData), maxReportData, errdefs.ErrInvalidArgument)
	}
	evidence, err := json.Marshal(struct {
		SVN        string `json:"svn"`
		ReportData []byte `json:"report_data"`
	}{SVN: "1", ReportData: reportData})
	if err != nil {
		return nil, fmt.Errorf("encode sample evidence: %w", err)
	}
	return evidence, nil
}
