package appraise

import (
	"context"
	"encoding/json"

	"github.com/coffer-project/coffer/proto/kbs"
)

// Evidence is what a guest handed in and what it must be bound to.
type Evidence struct {
	// Raw is the platform's JSON document; hostile until verified.
	Raw json.RawMessage
	// ReportData is what the platform must have signed, left aligned in its field.
	ReportData []byte
	// InitDataDigest is the digest of the initdata that the guest sent, or nil where it sent none. A verifier whose platform binds
	// initdata must refuse a digest that differs from the bound one.
	InitDataDigest []byte
}

// Result is an appraisal of genuine evidence. Evidence that is not genuine gives an error instead.
type Result struct {
	Status Status
	Vector TrustVector
	// PolicyID names the rules that led to Status.
	PolicyID string
	// Claims is what the evidence says about the guest, for policies and audit, by the names that Trustee uses. It goes into tokens, so
	// it must hold no secret.
	Claims map[string]any
	// ReportData and InitData are the bound values in the TEE's own notation; InitData is empty where none is known.
	ReportData, InitData string
}

// Verifier appraises the evidence of one kind of TEE. Calls may be concurrent.
type Verifier interface {
	// TEE is the kind.
	TEE() kbs.TEE
	// Verify returns InvalidArgument for evidence that cannot be parsed and PermissionDenied for evidence that is not genuine or not
	// bound to e. Its errors reach the guest: they must say nothing about what would have been accepted.
	Verify(ctx context.Context, e Evidence) (*Result, error)
}
