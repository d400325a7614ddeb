package broker

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/owner/appraise"
	"github.com/coffer-project/coffer/proto/kbs"
)

// DeviceVerifier appraises the evidence of the devices of one kind.
type DeviceVerifier = appraise.DeviceVerifier

// DeviceResult is the appraisal of one device.
type DeviceResult = appraise.DeviceResult

// maxDevices bounds the devices of one guest.
const maxDevices = 64

// verifyDevices has the additional evidence verified, in the order of the kinds' names.
func (b *Broker) verifyDevices(ctx context.Context, attestation *kbs.Attestation) ([]part, error) {
	if attestation.Evidence.Additional == "" {
		return nil, nil
	}
	var byKind map[string]json.RawMessage
	if err := kbs.Decode([]byte(attestation.Evidence.Additional), kbs.MaxAttestation, &byKind); err != nil {
		return nil, refuse(kbs.KindAttestation, "additional evidence: %s", peerText(err))
	}
	runtime := attestation.RuntimeData
	reportData, err := kbs.DeviceReportData(kbs.DefaultHash, runtime.Nonce, runtime.TEEPublicKey)
	if err != nil {
		return nil, refuse(kbs.KindAttestation, "%s", peerText(err))
	}
	var parts []part
	for _, kind := range slices.Sorted(maps.Keys(byKind)) {
		at := slices.IndexFunc(b.Devices, func(v DeviceVerifier) bool { return v.Device() == kind })
		if at < 0 {
			return nil, refuse(kbs.KindAttestation, "this broker cannot verify evidence of devices %.32q", kind)
		}
		results, err := b.Devices[at].VerifyDevices(ctx, appraise.Evidence{Raw: byKind[kind], ReportData: reportData})
		if err != nil {
			return nil, refusedEvidence(err)
		}
		for _, result := range results {
			parts = append(parts, part{class: result.Class, name: kind, result: &result.Result})
		}
		if len(parts) > maxDevices {
			return nil, refuse(kbs.KindAttestation, "evidence of more than %d devices", maxDevices)
		}
	}
	return parts, nil
}

// refusedEvidence tells a refusal by a verifier from a failure of ours: reference values that cannot be read are no fault of the guest.
func refusedEvidence(err error) error {
	if errdefs.IsUnavailable(err) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return broken("the evidence could not be verified", err)
	}
	return refuse(kbs.KindAttestation, "%s", peerText(err))
}
