package snp

import (
	"context"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/verify"

	"github.com/coffer-project/coffer/owner/appraise"
	"github.com/coffer-project/coffer/owner/appraise/collateral"
	"github.com/coffer-project/coffer/owner/memo"
	"github.com/coffer-project/coffer/proto/kbs"
)

// PolicyID and ForgedPolicyID name the rules in tokens: the second where Options.TestRoots were believed.
const (
	PolicyID       = "coffer-snp"
	ForgedPolicyID = "coffer-snp-forged"
)

// maxEvidence bounds the JSON document in bytes: a report and its certificates, four characters a byte.
const maxEvidence = 512 << 10

// Options are the parts of a Verifier. The zero value believes AMD, takes certificates from the evidence only, trusts no measurement.
type Options struct {
	// References names the measurements and firmware versions that the owner trusts; nil means none.
	References appraise.References
	// Collateral has certificates of chips whose guests bring none, and revocation lists; nil means none.
	Collateral *collateral.Store
	// RequireCRL refuses evidence unless a current revocation list says that AMD's intermediate key still holds.
	RequireCRL bool
	// TestRoots replace AMD's roots. For tests only; nil means AMD's.
	TestRoots Roots
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Verifier implements appraise.Verifier.
type Verifier struct {
	Options
	roots  Roots
	policy string
	keys   *memo.Map[keyID, *endorsementKey]
}

// New returns a Verifier.
func New(o Options) (*Verifier, error) {
	v := &Verifier{Options: o, roots: o.TestRoots, policy: ForgedPolicyID, keys: memo.New[keyID, *endorsementKey](maxKeys)}
	if v.References == nil {
		v.References = appraise.Values{}
	}
	if v.Collateral == nil {
		v.Collateral = &collateral.Store{}
	}
	if v.Now == nil {
		v.Now = time.Now
	}
	if v.roots == nil {
		roots, err := amdRoots()
		if err != nil {
			return nil, fmt.Errorf("built-in roots of AMD: %w", err)
		}
		v.roots, v.policy = roots, PolicyID
	}
	return v, nil
}

// TEE implements appraise.Verifier.
func (*Verifier) TEE() kbs.TEE { return kbs.TEESNP }

// Verify implements appraise.Verifier.
func (v *Verifier) Verify(ctx context.Context, e appraise.Evidence) (*appraise.Result, error) {
	var evidence kbs.SNPEvidence
	if err := kbs.DecodeStrict(e.Raw, maxEvidence, &evidence); err != nil {
		return nil, fmt.Errorf("SNP evidence: %w", err)
	}
	report := &evidence.Report
	raw, err := report.Raw()
	if err != nil {
		return nil, err
	}
	key, err := v.findKey(ctx, &evidence)
	if err != nil {
		return nil, err
	}
	if err := verify.SnpReportSignature(raw, key.cert); err != nil {
		return nil, fmt.Errorf("SNP report is not signed by the processor's key: %w", errdefs.ErrPermissionDenied)
	}
	if err := checkTCB(report, key); err != nil {
		return nil, err
	}
	policy, err := checkLaunch(report)
	if err != nil {
		return nil, err
	}
	if err := e.CheckReportData(report.ReportData); err != nil {
		return nil, err
	}
	if err := e.CheckInitData(report.HostData); err != nil {
		return nil, err
	}
	result := &appraise.Result{
		PolicyID:   v.policy,
		Claims:     claims(report, policy, key),
		ReportData: hex.EncodeToString(report.ReportData),
		InitData:   hex.EncodeToString(report.HostData),
	}
	if v.TestRoots != nil { // for policies and audit: this proves nothing
		result.Claims["test_roots"] = true
	}
	if result.Vector, err = v.judge(ctx, report, policy); err != nil {
		return nil, err
	}
	result.Status = result.Vector.Status()
	return result, nil
}

// checkLaunch refuses guests that their host or a less privileged part of themselves could speak for.
func checkLaunch(report *kbs.SNPReport) (abi.SnpPolicy, error) {
	policy, err := abi.ParseSnpPolicy(report.Policy)
	if err != nil {
		return policy, fmt.Errorf("SNP guest policy has unknown bits: %w", errdefs.ErrInvalidArgument)
	}
	if policy.Debug {
		return policy, fmt.Errorf("SNP guest may be debugged by its host: %w", errdefs.ErrPermissionDenied)
	}
	if report.VMPL != 0 {
		return policy, fmt.Errorf("SNP report was asked for at VMPL %d, not 0: %w", report.VMPL, errdefs.ErrPermissionDenied)
	}
	return policy, nil
}

// checkTCB holds the report's firmware versions against those that the key's certificate is for, and against each other.
func checkTCB(report *kbs.SNPReport, key *endorsementKey) error {
	if !sameTCB(report.ReportedTCB, key.tcb) {
		return fmt.Errorf("SNP report names other firmware versions than the certificate of the processor's key: %w", errdefs.ErrPermissionDenied)
	}
	for name, lower := range map[string]kbs.SNPTCB{"reported": report.ReportedTCB, "committed": report.CommittedTCB} {
		if !atMost(lower, report.CurrentTCB) {
			return fmt.Errorf("SNP report's %s TCB is above its current one: %w", name, errdefs.ErrPermissionDenied)
		}
	}
	return nil
}

func sameTCB(a, b kbs.SNPTCB) bool { return atMost(a, b) && atMost(b, a) }

// atMost compares part by part. A part that one of the two does not have makes them differ.
func atMost(a, b kbs.SNPTCB) bool {
	if (a.FMC == nil) != (b.FMC == nil) || a.FMC != nil && *a.FMC > *b.FMC {
		return false
	}
	return a.Bootloader <= b.Bootloader && a.TEE <= b.TEE && a.SNP <= b.SNP && a.Microcode <= b.Microcode
}
