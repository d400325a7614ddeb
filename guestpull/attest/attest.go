// Package attest collects evidence of what the guest is, for a key broker to appraise. It only collects: verifiers live with the owner
// of the secrets and are never linked into the guest.
package attest

import (
	"context"
	"encoding/json"
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
