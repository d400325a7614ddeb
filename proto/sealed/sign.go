package sealed

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/strictjson"
)

// algorithm is the only one of signatures: ECDSA on P-256 with SHA-256 (RFC 7518, 3.4). A signature is r and s, 32 bytes each.
const (
	algorithm      = "ES256"
	coordinateSize = 32
	signatureSize  = 2 * coordinateSize
)

// MaxKey bounds the text of a public key in bytes.
const MaxKey = 16 << 10

// Verify checks the signature. PermissionDenied: there is none, or another key made it, or somebody has changed the secret.
func (s *Secret) Verify(key *ecdsa.PublicKey) error {
	if !s.Signed() {
		return fmt.Errorf("sealed secret is not signed: %w", errdefs.ErrPermissionDenied)
	}
	sum := sha256.Sum256([]byte(s.signed))
	r, t := new(big.Int).SetBytes(s.signature[:coordinateSize]), new(big.Int).SetBytes(s.signature[coordinateSize:])
	if !ecdsa.Verify(key, sum[:], r, t) {
		return fmt.Errorf("sealed secret is not signed by key %.200q, or was changed: %w", s.KeyID, errdefs.ErrPermissionDenied)
	}
	return nil
}

// Sign makes the text of a secret in a key broker. kid says where guests find the public key; sign returns the signature of a SHA-256
// digest in ASN.1, as crypto.Signer does for ECDSA. InvalidArgument: the text could not be read back.
func (v *Vault) Sign(kid string, sign func(digest []byte) ([]byte, error)) (string, error) {
	header, err := json.Marshal(struct {
		Alg string `json:"alg"`
		KID string `json:"kid"`
	}{algorithm, kid})
	if err != nil {
		return "", fmt.Errorf("encode header: %w", err)
	}
	body, err := v.encode()
	if err != nil {
		return "", err
	}
	signed := base64.RawURLEncoding.EncodeToString(header) + "." + body
	sum := sha256.Sum256([]byte(signed))
	der, err := sign(sum[:])
	if err != nil {
		return "", err
	}
	raw, err := joseSignature(der)
	if err != nil {
		return "", err
	}
	return checked(Prefix + signed + "." + base64.RawURLEncoding.EncodeToString(raw))
}

// Unsigned makes the text without a signature, which guests refuse unless their measured document says otherwise.
func (v *Vault) Unsigned() (string, error) {
	body, err := v.encode()
	if err != nil {
		return "", err
	}
	return checked(Prefix + fakeHeader + "." + body + "." + fakeSignature)
}

func checked(text string) (string, error) {
	_, err := Parse(text)
	return text, err
}

// encode writes all members: other readers want even those that are empty.
func (v *Vault) encode() (string, error) {
	raw, err := json.Marshal(struct {
		Version     string          `json:"version"`
		Type        string          `json:"type"`
		Provider    string          `json:"provider"`
		Name        string          `json:"name"`
		Settings    json.RawMessage `json:"provider_settings"`
		Annotations json.RawMessage `json:"annotations"`
	}{Version, typeVault, v.Provider, v.Name, orEmpty(v.Settings), orEmpty(v.Annotations)})
	if err != nil {
		return "", fmt.Errorf("encode sealed secret: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return base64.RawURLEncoding.EncodeToString(raw), nil
}

func orEmpty(object json.RawMessage) json.RawMessage {
	if object == nil {
		return json.RawMessage("{}")
	}
	return object
}

// ParseKey reads a public key: a JWK, as other guests have it, or PEM. InvalidArgument: it is neither, or not on P-256, or it brings its
// private half, which nobody who only checks signatures may have.
func ParseKey(text []byte) (*ecdsa.PublicKey, error) {
	if len(text) > MaxKey {
		return nil, fmt.Errorf("public key of %d bytes, the limit is %d: %w", len(text), MaxKey, errdefs.ErrInvalidArgument)
	}
	if strings.HasPrefix(strings.TrimSpace(string(text)), "{") {
		return parseJWK(text)
	}
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "PUBLIC KEY" || strings.TrimSpace(string(rest)) != "" {
		return nil, fmt.Errorf("public key is neither a JWK nor one PEM block PUBLIC KEY: %w", errdefs.ErrInvalidArgument)
	}
	parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("public key cannot be parsed: %w", errdefs.ErrInvalidArgument)
	}
	key, ok := parsed.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("public key is not of ECDSA on P-256: %w", errdefs.ErrInvalidArgument)
	}
	return key, nil
}

func parseJWK(text []byte) (*ecdsa.PublicKey, error) {
	var kty, crv, alg, x, y string
	var d json.RawMessage
	if err := strictjson.Open(text, map[string]any{"kty": &kty, "crv": &crv, "alg": &alg, "x": &x, "y": &y, "d": &d}); err != nil {
		return nil, fmt.Errorf("JWK: %w", err)
	}
	switch {
	case kty != "EC" || crv != "P-256" || (alg != "" && alg != algorithm):
		return nil, fmt.Errorf("JWK is not of an EC key on P-256 for %s: %w", algorithm, errdefs.ErrInvalidArgument)
	case d != nil:
		return nil, fmt.Errorf("JWK holds the private key (d): store the public one: %w", errdefs.ErrInvalidArgument)
	}
	point := []byte{4} // uncompressed
	for _, text := range []string{x, y} {
		coordinate, err := decode(text)
		if err != nil || len(coordinate) != coordinateSize {
			return nil, fmt.Errorf("JWK: x or y is not %d bytes in base64url: %w", coordinateSize, errdefs.ErrInvalidArgument)
		}
		point = append(point, coordinate...)
	}
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
	if err != nil {
		return nil, fmt.Errorf("JWK: x and y are no point of P-256: %w", errdefs.ErrInvalidArgument)
	}
	return key, nil
}

// EncodeKey writes a public key as JWK, in which form all guests take it.
func EncodeKey(key *ecdsa.PublicKey) ([]byte, error) {
	point, err := key.Bytes()
	if err != nil || len(point) != 1+2*coordinateSize {
		return nil, fmt.Errorf("public key is not of ECDSA on P-256: %w", errdefs.ErrInvalidArgument)
	}
	return json.Marshal(map[string]string{
		"kty": "EC", "crv": "P-256", "alg": algorithm, "use": "sig",
		"x": base64.RawURLEncoding.EncodeToString(point[1 : 1+coordinateSize]), "y": base64.RawURLEncoding.EncodeToString(point[1+coordinateSize:]),
	})
}
