package attest

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/coffer-project/coffer/proto/kbs"
)

// Sample is a Platform for development on machines without a TEE. Its evidence is unsigned and proves nothing; brokers refuse it
// unless they were told to accept it, and guests send it only where their measured document says so: see Substitute.
type Sample struct{}

// NewSample returns a Sample.
func NewSample() *Sample { return &Sample{} }

// TEE implements Attester.
func (*Sample) TEE() string { return string(kbs.TEESample) }

// Kind implements Platform.
func (*Sample) Kind() string { return string(kbs.TEESample) }

// InitDataField implements Platform: there is none.
func (*Sample) InitDataField(context.Context) ([]byte, error) { return nil, nil }

// Evidence implements Attester.
func (*Sample) Evidence(ctx context.Context, reportData []byte) (json.RawMessage, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("collect sample evidence: %w", err)
	}
	if _, err := padReportData(reportData); err != nil {
		return nil, fmt.Errorf("collect sample evidence: %w", err)
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
