package nvgpu

import (
	"bytes"
	"context"
	"crypto/subtle"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/owner/appraise"
	"github.com/coffer-project/coffer/owner/appraise/collateral"
	"github.com/coffer-project/coffer/proto/kbs"
)

// PolicyID and ForgedPolicyID name the rules in tokens: the second where Options.TestRoots were believed.
const (
	PolicyID       = "coffer-nvgpu"
	ForgedPolicyID = "coffer-nvgpu-forged"
)

// The classes of devices, which name the submodules of tokens and select attestation policies.
const (
	classGPU    = "gpu"
	classSwitch = "switch"
)

// maxEvidence bounds the JSON document in bytes.
const maxEvidence = 2 << 20

// Options are the parts of a Verifier. The zero value believes NVIDIA and knows no manifests, so it finds all executables unknown.
type Options struct {
	// References names the versions of drivers and firmware that the owner trusts; nil means none.
	References appraise.References
	// Collateral has manifests of reference values and answers on revocation; nil means none.
	Collateral *collateral.Store
	// RequireOCSP refuses evidence unless current answers say that no certificate was revoked.
	RequireOCSP bool
	// TestRoots replace NVIDIA's roots. For tests only; nil means NVIDIA's.
	TestRoots *Roots
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Verifier implements appraise.DeviceVerifier.
type Verifier struct {
	Options
	roots   *Roots
	offline *collateral.Store // the same files, and never the network
	policy  string
}

// New returns a Verifier.
func New(o Options) (*Verifier, error) {
	v := &Verifier{Options: o, roots: o.TestRoots, policy: ForgedPolicyID}
	if v.References == nil {
		v.References = appraise.Values{}
	}
	if v.Collateral == nil {
		v.Collateral = &collateral.Store{}
	}
	v.offline = &collateral.Store{Dir: v.Collateral.Dir}
	if v.Now == nil {
		v.Now = time.Now
	}
	if v.roots == nil {
		roots, err := ParseRoots(append(bytes.Clone(deviceRoot), rimRoot...))
		if err != nil {
			return nil, fmt.Errorf("built-in %w", err)
		}
		v.roots, v.policy = roots, PolicyID
	}
	return v, nil
}

// Device implements appraise.DeviceVerifier.
func (*Verifier) Device() string { return kbs.DeviceNVIDIA }

// device is one device whose evidence is genuine.
type device struct {
	arch     kbs.NVIDIAArch
	uuid     string
	model    model
	chain    []*x509.Certificate
	report   *report
	settings map[string]any
	ocsp     bool // nothing in chain was revoked
}

// VerifyDevices implements appraise.DeviceVerifier.
func (v *Verifier) VerifyDevices(ctx context.Context, e appraise.Evidence) ([]appraise.DeviceResult, error) {
	var evidence kbs.NVIDIAEvidence
	if err := kbs.Decode(e.Raw, maxEvidence, &evidence); err != nil {
		return nil, fmt.Errorf("evidence of NVIDIA devices: %w", err)
	}
	if n := len(evidence.Devices); n == 0 || n > kbs.MaxNVIDIADevices {
		return nil, fmt.Errorf("evidence of %d NVIDIA devices, not of 1 to %d: %w", n, kbs.MaxNVIDIADevices, errdefs.ErrInvalidArgument)
	}
	if len(e.ReportData) == 0 {
		return nil, refuse("there is no session to bind it to")
	}
	nonce := make([]byte, kbs.NVIDIANonce)
	copy(nonce, e.ReportData)
	var devices []*device
	seen := map[string]bool{}
	for i := range evidence.Devices {
		d, err := v.verify(ctx, &evidence.Devices[i], nonce)
		if err != nil {
			return nil, fmt.Errorf("device %d: %w", i, err)
		}
		// One device that reports twice must not count as two. The second certificate is that of the chip.
		chip := string(d.chain[1].RawSubjectPublicKeyInfo)
		if seen[chip] {
			return nil, fmt.Errorf("device %d: %w", i, refuse("it is there twice"))
		}
		seen[chip] = true
		devices = append(devices, d)
	}
	return v.appraise(ctx, devices)
}

// verify finds out whether one device's evidence is genuine and bound to the nonce.
func (v *Verifier) verify(ctx context.Context, evidence *kbs.NVIDIADevice, nonce []byte) (*device, error) {
	raw, pem, err := evidence.Decode()
	if err != nil {
		return nil, err
	}
	d := &device{arch: evidence.Arch, uuid: evidence.UUID}
	if d.uuid == "" {
		d.uuid = "unknown"
	}
	if d.report, err = parseReport(raw); err != nil {
		return nil, err
	}
	if d.chain, err = parseChain(pem); err != nil {
		return nil, err
	}
	// What costs least comes first; only all of it together proves anything.
	if subtle.ConstantTimeCompare(d.report.nonce, nonce) != 1 {
		return nil, refuse("it is not bound to this session and key")
	}
	if err := checkSignature(d.chain[0], d.report); err != nil {
		return nil, err
	}
	if d.chain, err = checkChain(d.chain, v.roots.Device, v.Now()); err != nil {
		return nil, err
	}
	if d.model, err = checkModel(d.arch, d.chain[0], d.report); err != nil {
		return nil, err
	}
	if d.settings, err = d.report.settings(); err != nil {
		return nil, err
	}
	d.ocsp, err = v.checkRevocation(ctx, d.chain, v.RequireOCSP)
	return d, err
}

// appraise holds genuine devices against manifests and the owner's reference values.
func (v *Verifier) appraise(ctx context.Context, devices []*device) ([]appraise.DeviceResult, error) {
	manifests := v.cache(ctx)
	switches := attestedSwitches(devices)
	var results []appraise.DeviceResult
	for _, d := range devices {
		golden := d.compare(manifests)
		vector, err := v.judge(ctx, d, golden, switches)
		if err != nil {
			return nil, err
		}
		r := appraise.Result{
			Vector: vector, Status: vector.Status(), PolicyID: v.policy,
			Claims: d.claims(golden), ReportData: hex.EncodeToString(d.report.nonce),
		}
		if v.TestRoots != nil { // for policies and audit: this proves nothing
			r.Claims["test_roots"] = true
		}
		results = append(results, appraise.DeviceResult{Class: d.model.class, Result: r})
	}
	return results, nil
}
