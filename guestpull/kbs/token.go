package kbs

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	proto "github.com/coffer-project/coffer/proto/kbs"
)

// maxLifetime bounds how long one attestation is relied on, whatever the token says.
const maxLifetime = 24 * time.Hour

// tokenLifetime returns the time between the token's issue and its end. The signature is not checked and nothing else is believed: the
// token is the broker's note to itself, the guest only wants to know when to attest again.
func tokenLifetime(token string) (time.Duration, error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return 0, errors.New("the token is no JWT")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return 0, errors.New("the token's claims are not base64url")
	}
	var claims struct {
		IssuedAt int64 `json:"iat"`
		Expires  int64 `json:"exp"`
	}
	if err := proto.Decode(payload, proto.MaxTokenReply, &claims); err != nil {
		return 0, fmt.Errorf("the token's claims: %w", err)
	}
	seconds := claims.Expires - claims.IssuedAt
	if claims.IssuedAt <= 0 || claims.Expires <= 0 || seconds <= 0 {
		return 0, errors.New("the token has no lifetime (iat, exp)")
	}
	return time.Duration(min(seconds, int64(maxLifetime/time.Second))) * time.Second, nil
}
