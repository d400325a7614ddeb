// Package ear issues and checks attestation results: ES256-signed tokens in the EAR profile that Trustee uses. A broker signs what its
// verifiers found and later believes only tokens that it signed itself; other services can check them with the broker's certificate.
package ear

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/owner/appraise"
)

// Profile names the layout of Claims.
const Profile = "tag:github.com,2024:confidential-containers/Trustee"

// ClassCPU and ClassGPU are classes of evidence. A submodule is named after its class and counted from 0.
const (
	ClassCPU = "cpu"
	ClassGPU = "gpu"
)

// CPU is the name of the submodule that holds the guest's own appraisal and its key.
const CPU = ClassCPU + "0"

// The entries of Submod.Evidence besides the one named after the TEE.
const (
	InitData       = "init_data"
	InitDataClaims = "init_data_claims"
	ReportData     = "report_data"
	RuntimeClaims  = "runtime_data_claims"
)

// AgentPolicyClaims is the entry of InitDataClaims that shows the data of the agent's policy.
const AgentPolicyClaims = "agent_policy_claims"

// Claims is the payload of a token.
type Claims struct {
	Profile    string            `json:"eat_profile"`
	Issuer     string            `json:"iss,omitempty"`
	IssuedAt   int64             `json:"iat"` // seconds since 1970
	Expires    int64             `json:"exp"` // seconds since 1970
	VerifierID VerifierID        `json:"ear.verifier-id"`
	Submods    map[string]Submod `json:"submods"`

	// payload is what was signed, where that is known.
	payload []byte
}

// JSON returns the claims' encoding: for those of an issued or verified token the very bytes that were signed. Callers must not change
// them.
func (c *Claims) JSON() ([]byte, error) {
	if c.payload != nil {
		return c.payload, nil
	}
	raw, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode claims: %w", err)
	}
	return raw, nil
}

// VerifierID says who appraised.
type VerifierID struct {
	Developer string `json:"developer"`
	Build     string `json:"build"`
}

// Submod is the appraisal of one part of the guest.
type Submod struct {
	Status   appraise.Status            `json:"ear.status"`
	Vector   appraise.TrustVector       `json:"ear.trustworthiness-vector"`
	PolicyID string                     `json:"ear.appraisal-policy-id"`
	Evidence map[string]json.RawMessage `json:"ear.veraison.annotated-evidence"`
	// Extensions are what the attestation policy adds, by name, at the level of the members above.
	Extensions map[string]json.RawMessage `json:"-"`
}

// plainSubmod is Submod without its methods.
type plainSubmod Submod

// Reserved reports whether a name of a submodule's members has a meaning of its own, so that no extension can have it.
func Reserved(name string) bool {
	switch strings.ToLower(name) { // encoding/json does not tell upper from lower case either
	case "ear.status", "ear.trustworthiness-vector", "ear.appraisal-policy-id", "ear.veraison.annotated-evidence":
		return true
	}
	return false
}

// MarshalJSON implements json.Marshaler.
func (s Submod) MarshalJSON() ([]byte, error) {
	raw, err := json.Marshal(plainSubmod(s))
	if err != nil || len(s.Extensions) == 0 {
		return raw, err
	}
	members := map[string]json.RawMessage{}
	if err := json.Unmarshal(raw, &members); err != nil {
		return nil, err
	}
	for name, value := range s.Extensions {
		if !Reserved(name) {
			members[name] = value
		}
	}
	return json.Marshal(members)
}

// UnmarshalJSON implements json.Unmarshaler.
func (s *Submod) UnmarshalJSON(raw []byte) error {
	if err := json.Unmarshal(raw, (*plainSubmod)(s)); err != nil {
		return err
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(raw, &members); err != nil {
		return err
	}
	for name, value := range members {
		if Reserved(name) {
			continue
		}
		if s.Extensions == nil {
			s.Extensions = map[string]json.RawMessage{}
		}
		s.Extensions[name] = value
	}
	return nil
}

// TEEPublicKey returns the JWK of the guest that the token speaks of.
func (c *Claims) TEEPublicKey() (json.RawMessage, error) {
	var runtime struct {
		Key json.RawMessage `json:"tee-pubkey"`
	}
	raw, ok := c.Submods[CPU].Evidence[RuntimeClaims]
	if !ok {
		return nil, fmt.Errorf("token names no guest key: %w", errdefs.ErrInvalidArgument)
	}
	if err := json.Unmarshal(raw, &runtime); err != nil || runtime.Key == nil {
		return nil, fmt.Errorf("token names no guest key: %w", errdefs.ErrInvalidArgument)
	}
	return runtime.Key, nil
}

// Has reports whether the guest's CPU evidence is of the given TEE.
func (c *Claims) Has(tee string) bool {
	_, ok := c.Submods[CPU].Evidence[tee]
	return ok
}
