// Package admin says who may manage a broker: whoever holds an Ed25519 key whose public half the broker was configured with, as far as the
// key's roles go. The holder signs a short-lived JWT and sends it as bearer token, as Trustee's admin clients do. Roles belong to keys:
// what a token says of itself gives no right.
package admin

import (
	"crypto/ed25519"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// claimedRole is the role claim that our tokens carry; Trustee's sample configuration gives it access to resources.
const claimedRole = "kbs-admin"

// Limits on tokens. MaxLifetime leaves room for CoCo's key provider, which signs for two hours.
const (
	MaxLifetime = 24 * time.Hour
	leeway      = time.Minute
	maxToken    = 8 << 10 // bytes
)

type claims struct {
	jwt.Claims
	Role string `json:"role,omitempty"`
}

// Sign returns a token that is valid from now for lifetime.
func Sign(key ed25519.PrivateKey, now time.Time, lifetime time.Duration) (string, error) {
	if len(key) != ed25519.PrivateKeySize {
		return "", fmt.Errorf("admin key is no Ed25519 key: %w", errdefs.ErrInvalidArgument)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: key}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return "", fmt.Errorf("prepare admin key: %w", err)
	}
	token, err := jwt.Signed(signer).Claims(claims{
		Claims: jwt.Claims{
			IssuedAt:  jwt.NewNumericDate(now),
			NotBefore: jwt.NewNumericDate(now),
			Expiry:    jwt.NewNumericDate(now.Add(lifetime)),
		},
		Role: claimedRole,
	}).Serialize()
	if err != nil {
		return "", fmt.Errorf("sign admin token: %w", err)
	}
	return token, nil
}

// Admin is a configured admin.
type Admin struct {
	// Name is what the audit log calls the admin.
	Name  string
	Key   ed25519.PublicKey
	Roles []Role
}

// Verifier checks tokens. The zero value accepts none.
type Verifier struct {
	Admins []Admin
	// Issuer, Audience and Role, where not empty, must be in the token.
	Issuer, Audience, Role string
}

// Verify returns whose token it is, where one of the keys signed it and it is valid at now. Every fault is PermissionDenied.
func (v *Verifier) Verify(token string, now time.Time) (Identity, error) {
	refuse := func(reason string) (Identity, error) {
		return Identity{}, fmt.Errorf("%s: %w", reason, errdefs.ErrPermissionDenied)
	}
	if len(v.Admins) == 0 {
		return refuse("the broker has no admin key")
	}
	if len(token) > maxToken {
		return refuse("admin token is too long")
	}
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.EdDSA})
	if err != nil {
		return refuse("admin token is no EdDSA JWT")
	}
	for _, a := range v.Admins {
		var c claims
		if parsed.Claims(a.Key, &c) != nil {
			continue
		}
		if err := v.check(c, now); err != nil {
			return Identity{}, err
		}
		return Identity{Name: a.Name, Roles: a.Roles}, nil
	}
	return refuse("admin token was not signed by a known admin key")
}

func (v *Verifier) check(c claims, now time.Time) error {
	if c.Expiry == nil {
		return fmt.Errorf("admin token never expires: %w", errdefs.ErrPermissionDenied)
	}
	if c.Expiry.Time().Sub(now) > MaxLifetime+leeway {
		return fmt.Errorf("admin token is valid for more than %s: %w", MaxLifetime, errdefs.ErrPermissionDenied)
	}
	expected := jwt.Expected{Time: now, Issuer: v.Issuer}
	if v.Audience != "" {
		expected.AnyAudience = jwt.Audience{v.Audience}
	}
	if err := c.ValidateWithLeeway(expected, leeway); err != nil {
		return fmt.Errorf("admin token: %w: %w", err, errdefs.ErrPermissionDenied)
	}
	if v.Role != "" && c.Role != v.Role {
		return fmt.Errorf("admin token does not carry the role %q: %w", v.Role, errdefs.ErrPermissionDenied)
	}
	return nil
}
