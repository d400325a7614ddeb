package nvgpu

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/kbs"
)

// Attester implements attest.DeviceAttester for all GPUs of the guest.
type Attester struct {
	client *Client
	count  int
}

// NewAttester returns the attester of a guest that has count GPUs on its PCI buses. Evidence of fewer or more is none: a GPU that the
// driver leaves out would be used without having been appraised.
func NewAttester(client *Client, count int) *Attester { return &Attester{client: client, count: count} }

// Device implements attest.DeviceAttester.
func (*Attester) Device() string { return kbs.DeviceNVIDIA }

// Evidence implements attest.DeviceAttester. The nonce is the first part of reportData, padded with zeros where that is shorter.
func (a *Attester) Evidence(ctx context.Context, reportData []byte) (json.RawMessage, error) {
	nonce := make([]byte, kbs.NVIDIANonce)
	copy(nonce, reportData)
	evidence, err := a.client.Evidence(ctx, nonce)
	if err != nil {
		return nil, err
	}
	if len(evidence.Devices) != a.count {
		return nil, fmt.Errorf("evidence of %d GPUs, but the guest has %d: %w", len(evidence.Devices), a.count, errdefs.ErrFailedPrecondition)
	}
	raw, err := json.Marshal(evidence)
	if err != nil {
		return nil, fmt.Errorf("encode evidence of GPUs: %w", err)
	}
	return raw, nil
}
