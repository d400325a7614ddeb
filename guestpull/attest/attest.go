// Package attest collects evidence of what the guest is, for a key broker to appraise. It only collects: verifiers live with the owner
// of the secrets and are never linked into the guest.
package attest

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/containerd/errdefs"
)

// Attester asks the platform for evidence. Calls may come at any time and concurrently.
type Attester interface {
	// Evidence returns the platform's evidence, a JSON document in the form that brokers expect for TEE, with reportData bound into it.
	// reportData has at most 64 bytes; shorter values stand left aligned in the platform's field. A platform that is not there or does
	// not answer is Unavailable.
	Evidence(ctx context.Context, reportData []byte) (json.RawMessage, error)
	// TEE returns the platform's name in the key broker protocol.
	TEE() string
}

// Platform is the machine that the guest runs on.
type Platform interface {
	Attester
	// InitDataField returns the field that the host filled when it launched the TEE, and that the TEE attests ever since: HOST_DATA of SNP,
	// MRCONFIGID of TDX. The host cannot forge what is returned, but for NewForged, whose host forges all. A platform without such a field returns nil.
	InitDataField(ctx context.Context) ([]byte, error)
	// Kind returns the name that measured documents have for such guests (attestation.tees in coffer.toml).
	Kind() string
}

// Measured is a platform that tells what was measured of the guest at its launch. It is for people: brokers read it in evidence.
type Measured interface {
	Measurement(ctx context.Context) ([]byte, error)
}

// DeviceAttester asks devices of one kind for evidence, for example all of the guest's GPUs. Calls may be concurrent.
type DeviceAttester interface {
	// Device returns the kind's name in the key broker protocol, for example nvidia.
	Device() string
	// Evidence returns the evidence of all devices of the kind, a JSON document in the form that brokers expect, bound to reportData
	// (kbs.DeviceReportData). One device that gives none is an error: what was not appraised must not pass for a part that was. nil: the
	// guest has no devices of the kind that anything is entrusted to.
	Evidence(ctx context.Context, reportData []byte) (json.RawMessage, error)
}

// maxReportData is the largest report data field of a TEE, in bytes.
const maxReportData = 64

// padReportData returns the whole field.
func padReportData(reportData []byte) ([]byte, error) {
	if len(reportData) > maxReportData {
		return nil, fmt.Errorf("report data of %d bytes, at most %d fit: %w", len(reportData), maxReportData, errdefs.ErrInvalidArgument)
	}
	return append(make([]byte, 0, maxReportData), reportData...)[:maxReportData], nil
}
