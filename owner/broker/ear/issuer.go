package ear

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/go-jose/go-jose/v4"

	"github.com/coffer-project/coffer/proto/kbs"
)

// issuerName is the iss claim of tokens.
const issuerName = "coffer-kbs"

// leeway is how far a token's start may lie in the future: several brokers may share one key.
const leeway = time.Minute

// Issuer signs and checks tokens with one key.
type Issuer struct {
	public *ecdsa.PublicKey
	signer jose.Signer
	now    func() time.Time
}

// NewIssuer returns an Issuer for a P-256 key. certs, when not empty, is the key's certificate and its chain, which tokens then carry.
// now is the clock.
func NewIssuer(key *ecdsa.PrivateKey, certs []*x509.Certificate, now func() time.Time) (*Issuer, error) {
	if key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("token key is not on curve P-256: %w", errdefs.ErrInvalidArgument)
	}
	if len(certs) > 0 && !key.PublicKey.Equal(certs[0].PublicKey) {
		return nil, fmt.Errorf("token certificate does not belong to the token key: %w", errdefs.ErrInvalidArgument)
	}
	jwk := jose.JSONWebKey{Key: key, Certificates: certs, Algorithm: string(jose.ES256), Use: "sig"}
	thumbprint, err := jwk.Thumbprint(crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("name token key: %w", err)
	}
	jwk.KeyID = hex.EncodeToString(thumbprint)
	options := (&jose.SignerOptions{EmbedJWK: true}).WithType("JWT")
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jwk}, options)
	if err != nil {
		return nil, fmt.Errorf("prepare token key: %w", err)
	}
	return &Issuer{public: &key.PublicKey, signer: signer, now: now}, nil
}

// Issue fills in the profile and the times and returns the signed token, and the claims as they are in it.
func (i *Issuer) Issue(claims Claims, lifetime time.Duration) (string, *Claims, error) {
	claims.Profile = Profile
	claims.Issuer = issuerName
	claims.IssuedAt = i.now().Unix()
	claims.Expires = i.now().Add(lifetime).Unix()
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", nil, fmt.Errorf("encode token: %w", err)
	}
	signed, err := i.signer.Sign(payload)
	if err != nil {
		return "", nil, fmt.Errorf("sign token: %w", err)
	}
	token, err := signed.CompactSerialize()
	if err != nil {
		return "", nil, fmt.Errorf("encode token: %w", err)
	}
	claims.payload = payload
	return token, &claims, nil
}

// Verify returns the claims of a token that this key signed and that is valid now. The key in the token's header is never used.
// Every fault is PermissionDenied.
func (i *Issuer) Verify(token string) (*Claims, error) {
	if len(token) > kbs.MaxTokenReply {
		return nil, fmt.Errorf("token is too long: %w", errdefs.ErrPermissionDenied)
	}
	signed, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return nil, fmt.Errorf("token is no ES256 JWT: %w", errdefs.ErrPermissionDenied)
	}
	payload, err := signed.Verify(i.public)
	if err != nil {
		return nil, fmt.Errorf("token was not signed by this broker: %w", errdefs.ErrPermissionDenied)
	}
	var claims Claims
	if err := json.Unmarshal(payload, &claims); err != nil || claims.Profile != Profile {
		return nil, fmt.Errorf("token does not hold an attestation result: %w", errdefs.ErrPermissionDenied)
	}
	claims.payload = payload
	if err := i.CheckTime(&claims); err != nil {
		return nil, err
	}
	return &claims, nil
}

// CheckTime returns PermissionDenied unless claims of a verified token are valid now.
func (i *Issuer) CheckTime(claims *Claims) error {
	now := i.now()
	if !now.Before(time.Unix(claims.Expires, 0)) {
		return fmt.Errorf("token expired at %s: %w", time.Unix(claims.Expires, 0).UTC().Format(time.RFC3339), errdefs.ErrPermissionDenied)
	}
	if now.Add(leeway).Before(time.Unix(claims.IssuedAt, 0)) {
		return fmt.Errorf("token is not valid yet: %w", errdefs.ErrPermissionDenied)
	}
	return nil
}
