package kbs

import (
	"encoding/json"
	"time"
)

// Where admins manage a broker, below its base URL. Posting to the first three is Trustee's protocol, as is reading PathResourcePolicy and
// single reference values; the rest is our addition.
const (
	PathResourcePolicy    = "/kbs/v0/resource-policy"
	PathAttestationPolicy = "/kbs/v0/attestation-policy"
	PathReferenceValue    = "/kbs/v0/reference-value"
	PathStatus            = "/kbs/v0/status"
	PathReady             = "/readyz"
	PathMetrics           = "/metrics"
)

// Size limits in bytes of admin documents.
const (
	// MaxPolicyRequest bounds an uploaded policy, in base64 and JSON.
	MaxPolicyRequest = 512 << 10
	// MaxReferences bounds a document of reference values.
	MaxReferences = 1 << 20
)

// SetPolicy is the body of a POST to PathResourcePolicy (Policy only) and PathAttestationPolicy.
type SetPolicy struct {
	Type string `json:"type,omitempty"` // "rego"
	ID   string `json:"policy_id,omitempty"`
	// Policy is the text in base64url without padding.
	Policy string `json:"policy"`
}

// PolicyText answers a GET of one policy.
type PolicyText struct {
	ID string `json:"id"`
	// BuiltIn is true where none was handed in, so that the broker's own holds.
	BuiltIn bool   `json:"built_in"`
	Digest  string `json:"digest"` // "sha256:" and hex, of the text
	Text    string `json:"text"`
}

// ReferenceValue is an entry of the answer to a GET of PathReferenceValue.
type ReferenceValue struct {
	Name       string          `json:"name"`
	Expiration time.Time       `json:"expiration"`
	Value      json.RawMessage `json:"value"`
}

// ReferenceList is the answer to a GET of PathReferenceValue.
type ReferenceList struct {
	Values []ReferenceValue `json:"values"`
}

// Status is the answer to a GET of PathStatus.
type Status struct {
	Version string `json:"version"`
	// TEEs and Devices are the kinds of evidence that the broker can verify.
	TEEs    []TEE    `json:"tees"`
	Devices []string `json:"devices"`
	// ResourcePolicy and AttestationPolicies are the ids of the policies that hold.
	ResourcePolicy      string   `json:"resource_policy"`
	AttestationPolicies []string `json:"attestation_policies"`
	Resources           int      `json:"resources"`
	ReferenceValues     int      `json:"reference_values"`
	// Admin and Roles say whom the broker takes the asker for.
	Admin string   `json:"admin"`
	Roles []string `json:"roles"`
}
