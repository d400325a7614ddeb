package broker

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"encoding/json"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/go-jose/go-jose/v4"

	"github.com/coffer-project/coffer/proto/kbs"
)

// maxJWK bounds a guest's public key in bytes; RSA with 8192 bits needs 1.5 KiB.
const maxJWK = 4096

// RSA key sizes in bits.
const (
	minRSA = 2048
	maxRSA = 8192
)

// teeKey is a guest's public key with the algorithm that resources are sealed with.
type teeKey struct {
	public    crypto.PublicKey
	algorithm jose.KeyAlgorithm
}

// parseTEEKey reads tee-pubkey. Only the members of the protocol may be there, so that the hashed key and the used one cannot differ.
func parseTEEKey(raw json.RawMessage) (*teeKey, error) {
	var shape struct {
		KeyType   string  `json:"kty"`
		Curve     *string `json:"crv"`
		Algorithm string  `json:"alg"`
		X         *string `json:"x"`
		Y         *string `json:"y"`
		N         *string `json:"n"`
		E         *string `json:"e"`
	}
	if err := kbs.DecodeStrict(raw, maxJWK, &shape); err != nil {
		return nil, fmt.Errorf("tee-pubkey: %w", err)
	}
	bad := func(reason string) (*teeKey, error) {
		return nil, fmt.Errorf("tee-pubkey %s: %w", reason, errdefs.ErrInvalidArgument)
	}
	var jwk jose.JSONWebKey
	if err := jwk.UnmarshalJSON(raw); err != nil {
		return bad("is no valid public key")
	}
	key := &teeKey{public: jwk.Key, algorithm: jose.KeyAlgorithm(shape.Algorithm)}
	switch public := jwk.Key.(type) {
	case *ecdsa.PublicKey:
		curve := public.Curve.Params().Name
		if curve != "P-256" && curve != "P-521" {
			return bad("is on none of the curves P-256 and P-521")
		}
		if key.algorithm != jose.ECDH_ES_A256KW {
			return bad("is for another algorithm than ECDH-ES+A256KW")
		}
	case *rsa.PublicKey:
		if bits := public.N.BitLen(); bits < minRSA || bits > maxRSA {
			return bad(fmt.Sprintf("has %d bits, want %d to %d", bits, minRSA, maxRSA))
		}
		if key.algorithm != jose.RSA_OAEP_256 {
			return bad("is for another algorithm than RSA-OAEP-256")
		}
	default:
		return bad("is neither EC nor RSA")
	}
	return key, nil
}
