// Package sample appraises the evidence of the sample TEE, which anybody can write. It exists so that the whole path can be developed
// and tested on any machine. Whoever registers this verifier gives up attestation; a broker does so only when started to.
package sample

import (
	"context"
	"crypto/subtle"
	"encoding/base64"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/owner/appraise"
	"github.com/coffer-project/coffer/proto/kbs"
)

// maxEvidence bounds the JSON document in bytes.
const maxEvidence = 4096

// PolicyID names the rules in tokens.
const PolicyID = "coffer-sample"

// Verifier implements appraise.Verifier.
type Verifier struct{}

// New returns a Verifier.
func New() *Verifier { return &Verifier{} }

// TEE implements appraise.Verifier.
func (*Verifier) TEE() kbs.TEE { return kbs.TEESample }

// Verify implements appraise.Verifier. It checks the binding to the session, so that the protocol is exercised, and always returns
// status none: there is nothing to affirm. The initdata digest is passed through unchecked.
func (*Verifier) Verify(_ context.Context, e appraise.Evidence) (*appraise.Result, error) {
	var evidence struct {
		SVN        string `json:"svn"`
		ReportData string `json:"report_data"`
	}
	if err := kbs.DecodeStrict(e.Raw, maxEvidence, &evidence); err != nil {
		return nil, fmt.Errorf("sample evidence: %w", err)
	}
	if evidence.SVN == "" || len(evidence.SVN) > 32 {
		return nil, fmt.Errorf("sample evidence has no usable svn: %w", errdefs.ErrInvalidArgument)
	}
	reportData, err := base64.StdEncoding.DecodeString(evidence.ReportData)
	if err != nil {
		return nil, fmt.Errorf("sample evidence: report_data is not base64: %w", errdefs.ErrInvalidArgument)
	}
	if len(e.ReportData) == 0 || subtle.ConstantTimeCompare(reportData, e.ReportData) != 1 {
		return nil, fmt.Errorf("sample evidence is not bound to this session and key: %w", errdefs.ErrPermissionDenied)
	}
	result := &appraise.Result{
		Status:     appraise.None,
		PolicyID:   PolicyID,
		Claims:     map[string]any{"svn": evidence.SVN},
		ReportData: evidence.ReportData,
	}
	if e.InitDataDigest != nil {
		result.InitData = base64.StdEncoding.EncodeToString(e.InitDataDigest)
	}
	return result, nil
}
