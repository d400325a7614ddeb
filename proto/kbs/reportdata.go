package kbs

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/json"
	"fmt"

	"github.com/containerd/errdefs"
)

// Hash names a digest in extra-params.
type Hash string

// The digests of the protocol. DefaultHash holds unless a Challenge selects another one.
const (
	SHA256      Hash = "sha256"
	SHA384      Hash = "sha384"
	SHA512      Hash = "sha512"
	DefaultHash      = SHA384
)

// Sum returns the digest of data. An unknown name is InvalidArgument.
func (h Hash) Sum(data []byte) ([]byte, error) {
	switch h {
	case SHA256:
		sum := sha256.Sum256(data)
		return sum[:], nil
	case SHA384:
		sum := sha512.Sum384(data)
		return sum[:], nil
	case SHA512:
		sum := sha512.Sum512(data)
		return sum[:], nil
	}
	return nil, fmt.Errorf("unknown hash algorithm %q: %w", sanitize(string(h), 32), errdefs.ErrInvalidArgument)
}

// ReportData is what a TEE must sign to bind its evidence to the session (nonce), to the guest's fresh key (teePublicKey, a JWK) and
// to the evidence of its devices (additional, the string of CompositeEvidence): the digest of the canonical JSON of the three.
// The result is shorter than some report data fields; verifiers compare it left aligned and zero padded.
func ReportData(hash Hash, nonce string, teePublicKey json.RawMessage, additional string) ([]byte, error) {
	document, err := json.Marshal(map[string]any{
		"tee-pubkey":          teePublicKey,
		"nonce":               nonce,
		"additional-evidence": additional,
	})
	if err != nil {
		return nil, fmt.Errorf("encode runtime data: %s: %w", sanitize(err.Error(), 80), errdefs.ErrInvalidArgument)
	}
	canonical, err := Canonical(document)
	if err != nil {
		return nil, fmt.Errorf("runtime data: %w", err)
	}
	return hash.Sum(canonical)
}

// DeviceReportData is what the evidence of a device is bound to: the digest of the canonical JSON of nonce and teePublicKey. Devices with a
// short nonce take its first bytes.
func DeviceReportData(hash Hash, nonce string, teePublicKey json.RawMessage) ([]byte, error) {
	document, err := json.Marshal(map[string]any{"tee-pubkey": teePublicKey, "nonce": nonce})
	if err != nil {
		return nil, fmt.Errorf("encode runtime data: %s: %w", sanitize(err.Error(), 80), errdefs.ErrInvalidArgument)
	}
	canonical, err := Canonical(document)
	if err != nil {
		return nil, fmt.Errorf("runtime data: %w", err)
	}
	return hash.Sum(canonical)
}

// SelectedHash reads extra-params of a Challenge: the digest that it selects, or DefaultHash where it selects none (no extra-params,
// an empty string, an empty object).
func SelectedHash(extraParams json.RawMessage) (Hash, error) {
	if len(extraParams) == 0 || string(extraParams) == `""` || string(extraParams) == "null" {
		return DefaultHash, nil
	}
	var params HashParams
	if err := Decode(extraParams, MaxChallenge, &params); err != nil {
		return "", fmt.Errorf("extra-params of the challenge: %w", err)
	}
	switch params.Selected {
	case "":
		return DefaultHash, nil
	case SHA256, SHA384, SHA512:
		return params.Selected, nil
	}
	return "", fmt.Errorf("challenge selects unknown hash algorithm %q: %w", sanitize(string(params.Selected), 32), errdefs.ErrInvalidArgument)
}
