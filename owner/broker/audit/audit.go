// Package audit records every decision of a broker as one JSON object per line. It must never see a secret: records have no field for
// one, and sessions are recorded by digest because their names are credentials.
package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"
)

// The events.
const (
	EventAuth    = "auth"
	EventAttest  = "attest"
	EventRelease = "release"
	EventAdmin   = "admin"
)

// The decisions.
const (
	Allowed = "allowed"
	Refused = "refused"
)

// Record is one decision.
type Record struct {
	Time     time.Time `json:"time"`
	Event    string    `json:"event"`
	Remote   string    `json:"remote,omitempty"`
	Session  string    `json:"session,omitempty"` // see SessionID
	TEE      string    `json:"tee,omitempty"`
	Decision string    `json:"decision"`
	// Reason says why in one line.
	Reason string `json:"reason,omitempty"`
	// Resource is the kbs:/// URI of a release or of an admin's change.
	Resource string `json:"resource,omitempty"`
	// Admin names the key that asked for an admin's action, Action is its method, Object what it was about where that is no resource.
	Admin  string `json:"admin,omitempty"`
	Action string `json:"action,omitempty"`
	Object string `json:"object,omitempty"`
	// ClaimsDigest is the SHA-256 of the token's claims. It ties releases to the attest record, which shows the claims themselves.
	ClaimsDigest string          `json:"claims_digest,omitempty"`
	Claims       json.RawMessage `json:"claims,omitempty"`
}

// SessionID returns what stands for a session in records.
func SessionID(cookie string) string {
	sum := sha256.Sum256([]byte(cookie))
	return hex.EncodeToString(sum[:8])
}

// ClaimsDigest returns the digest of a token's claims.
func ClaimsDigest(claims []byte) string {
	sum := sha256.Sum256(claims)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// Log writes records to w. Calls may be concurrent.
type Log struct {
	mu sync.Mutex
	w  io.Writer
}

// New returns a Log. Each record is one call of Write.
func New(w io.Writer) *Log { return &Log{w: w} }

// Record writes one line. An error means that the decision may not be on record, so nothing may be released on it.
func (l *Log) Record(r Record) error {
	line, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode audit record: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, err := l.w.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("write audit record: %w", err)
	}
	return nil
}
