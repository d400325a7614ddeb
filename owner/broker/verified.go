package broker

import (
	"crypto/sha256"

	"github.com/coffer-project/coffer/owner/broker/audit"
	"github.com/coffer-project/coffer/owner/broker/ear"
	"github.com/coffer-project/coffer/owner/memo"
)

// Limits on the tokens that are remembered: a guest fetches several keys with one.
const (
	maxVerified      = 1024
	maxVerifiedToken = 16 << 10 // bytes
)

// verifiedTokens remembers tokens whose signature was good, so that it need not be checked for each key. Their time is checked always.
type verifiedTokens struct {
	tokens  Tokens
	byToken *memo.Map[[sha256.Size]byte, verifiedToken]
}

type verifiedToken struct {
	claims *ear.Claims
	digest string
}

func newVerifiedTokens(tokens Tokens) *verifiedTokens {
	return &verifiedTokens{tokens: tokens, byToken: memo.New[[sha256.Size]byte, verifiedToken](maxVerified)}
}

// claims returns the claims of a valid token and their digest. They are shared: nobody may change them.
func (v *verifiedTokens) claims(token string) (*ear.Claims, string, error) {
	if known, ok := v.byToken.Get(sha256.Sum256([]byte(token))); ok {
		return known.claims, known.digest, v.tokens.CheckTime(known.claims)
	}
	claims, err := v.tokens.Verify(token)
	if err != nil {
		return nil, "", err
	}
	raw, err := claims.JSON()
	if err != nil {
		return nil, "", err
	}
	digest := audit.ClaimsDigest(raw)
	v.keep(token, claims, digest)
	return claims, digest, nil
}

// keep remembers a token that is known to be good: one that was verified, or that this broker has just signed.
func (v *verifiedTokens) keep(token string, claims *ear.Claims, digest string) {
	if len(token) <= maxVerifiedToken {
		v.byToken.Put(sha256.Sum256([]byte(token)), verifiedToken{claims: claims, digest: digest})
	}
}
