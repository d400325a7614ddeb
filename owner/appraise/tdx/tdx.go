package tdx

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/coffer-project/coffer/owner/appraise"
	"github.com/coffer-project/coffer/owner/appraise/collateral"
	"github.com/coffer-project/coffer/owner/measure/eventlog"
	"github.com/coffer-project/coffer/proto/kbs"
)

// PolicyID names the rules in tokens.
const PolicyID = "coffer-tdx"

// maxEvidence bounds the JSON document in bytes: quote and event log in base64.
const maxEvidence = 2 << 20

// Options are the parts of a Verifier. The zero value knows no collateral, so it finds all hardware unknown, and trusts no measurement.
type Options struct {
	// References names the measurements that the owner trusts; nil means none.
	References appraise.References
	// Collateral has Intel's TCB information, enclave identity and revocation lists; nil means none.
	Collateral *collateral.Store
	// RequireCRL refuses evidence unless current revocation lists say that no certificate was revoked.
	RequireCRL bool
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Verifier implements appraise.Verifier.
type Verifier struct {
	Options
	root *x509.Certificate
}

// New returns a Verifier.
func New(o Options) (*Verifier, error) {
	v := &Verifier{Options: o}
	if v.References == nil {
		v.References = appraise.Values{}
	}
	if v.Collateral == nil {
		v.Collateral = &collateral.Store{}
	}
	if v.Now == nil {
		v.Now = time.Now
	}
	block, _ := pem.Decode(intelRoot)
	var err error
	if v.root, err = x509.ParseCertificate(block.Bytes); err != nil {
		return nil, fmt.Errorf("built-in root of Intel: %w", err)
	}
	return v, nil
}

// TEE implements appraise.Verifier.
func (*Verifier) TEE() kbs.TEE { return kbs.TEETDX }

// Verify implements appraise.Verifier.
func (v *Verifier) Verify(ctx context.Context, e appraise.Evidence) (*appraise.Result, error) {
	raw, events, err := decode(e.Raw)
	if err != nil {
		return nil, err
	}
	q, err := parseQuote(raw)
	if err != nil {
		return nil, err
	}
	p, err := v.checkSignatures(raw, q)
	if err != nil {
		return nil, err
	}
	if untrusted := q.body.tdAttributes[0]; untrusted != 0 {
		return nil, fmt.Errorf("TDX guest may be debugged or profiled by its host (attributes %#x): %w", untrusted, errdefs.ErrPermissionDenied)
	}
	if err := e.CheckReportData(q.body.reportData); err != nil {
		return nil, err
	}
	if err := e.CheckInitData(q.body.mrConfigID); err != nil {
		return nil, err
	}
	if err := checkLog(q, events); err != nil {
		return nil, err
	}
	level, err := v.checkTCB(ctx, q, p)
	if err != nil && (v.RequireCRL || !errdefs.IsNotFound(err)) {
		return nil, err
	}
	if err != nil {
		log.G(ctx).WithError(err).Warn("nothing is known about the TCB of a TDX platform")
	}
	result := &appraise.Result{
		PolicyID:   PolicyID,
		Claims:     claims(q, p, events, level),
		ReportData: hex.EncodeToString(q.body.reportData),
		InitData:   hex.EncodeToString(q.body.mrConfigID),
	}
	if result.Vector, err = v.judge(ctx, q, level); err != nil {
		return nil, err
	}
	result.Status = result.Vector.Status()
	return result, nil
}

// decode reads the JSON document. events is nil where the guest sent no log.
func decode(document []byte) (quote []byte, events *eventlog.Log, err error) {
	var evidence kbs.TDXEvidence
	if err := kbs.DecodeStrict(document, maxEvidence, &evidence); err != nil {
		return nil, nil, fmt.Errorf("TDX evidence: %w", err)
	}
	if quote, err = base64.StdEncoding.DecodeString(evidence.Quote); err != nil {
		return nil, nil, fmt.Errorf("TDX evidence: quote is not base64: %w", errdefs.ErrInvalidArgument)
	}
	if evidence.EventLog == nil || *evidence.EventLog == "" {
		return quote, nil, nil
	}
	raw, err := base64.StdEncoding.DecodeString(*evidence.EventLog)
	if err != nil || len(raw) > kbs.MaxEventLog {
		return nil, nil, fmt.Errorf("TDX evidence: event log is not base64, or larger than %d bytes: %w", kbs.MaxEventLog, errdefs.ErrInvalidArgument)
	}
	events, err = eventlog.Parse(raw)
	return quote, events, err
}

// checkLog refuses an event log that does not lead to the registers of the quote.
func checkLog(q *quote, events *eventlog.Log) error {
	if events == nil {
		return nil
	}
	for i, register := range events.Replay() {
		if string(register[:]) != string(q.body.rtmr[i]) {
			return fmt.Errorf("event log does not lead to the value of runtime register %d: %w", i, errdefs.ErrPermissionDenied)
		}
	}
	return nil
}

// attribute tells whether a bit of TD_ATTRIBUTES is set.
func (b body) attribute(bit uint) bool { return binary.LittleEndian.Uint64(b.tdAttributes)>>bit&1 == 1 }
