package kbs

import (
	"encoding/json"
	"strings"
)

// ProblemPrefix stands before the kind in Problem.Type. It is a name, not an address to fetch.
const ProblemPrefix = "https://github.com/confidential-containers/kbs/errors/"

// ProblemType is the content type of a Problem.
const ProblemType = "application/problem+json"

// The kinds of Problem that we tell apart. Brokers may send others.
const (
	KindAdminAuth       = "AdminAuthAccess"
	KindAttestation     = "AttestationError"
	KindInvalidPath     = "InvalidRequestPath"
	KindNotFound        = "ResourceNotFound"
	KindPolicyDeny      = "PolicyDeny"
	KindTokenNotFound   = "TokenNotFound"
	KindTokenVerifier   = "TokenVerifierError"
	KindPluginNotFound  = "PluginNotFound"
	KindPluginInternal  = "PluginInternalError"
	KindTooManyRequests = "TooManyRequests"
	KindParsePolicy     = "ParsePolicyError"
	KindReference       = "RvpsError"
)

// maxDetail bounds what of a peer's text may reach our errors and logs, in bytes.
const maxDetail = 512

// Problem is the body of every answer that is not a success.
type Problem struct {
	Type   string `json:"type"`
	Detail string `json:"detail"`
}

// NewProblem returns the Problem of a kind.
func NewProblem(kind, detail string) Problem {
	return Problem{Type: ProblemPrefix + kind, Detail: detail}
}

// Kind returns the last part of Type: one of the Kind constants or a peer's own word, empty where Type is none of ours.
func (p Problem) Kind() string {
	kind, ok := strings.CutPrefix(p.Type, ProblemPrefix)
	if !ok {
		return ""
	}
	return kind
}

// Encode returns the JSON form.
func (p Problem) Encode() []byte {
	raw, err := json.Marshal(p)
	if err != nil { // two strings always encode
		return []byte(`{}`)
	}
	return raw
}

// ParseProblem reads the body of a failed answer. It never fails: a body that is no Problem gives the empty one. What it returns is
// cut and stripped of control characters, fit for an error message; it is still the peer's word.
func ParseProblem(raw []byte) Problem {
	var p Problem
	if err := Decode(raw, MaxProblem, &p); err != nil {
		return Problem{}
	}
	return Problem{Type: sanitize(p.Type, 200), Detail: sanitize(p.Detail, maxDetail)}
}

// sanitize makes foreign text safe for one line of an error message or log: printable ASCII, at most limit bytes.
func sanitize(s string, limit int) string {
	var b strings.Builder
	for _, r := range s {
		if b.Len() >= limit {
			b.WriteString("...")
			break
		}
		if r < 0x20 || r > 0x7e {
			r = '?'
		}
		b.WriteRune(r)
	}
	return b.String()
}
