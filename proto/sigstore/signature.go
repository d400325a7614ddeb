package sigstore

import (
	"encoding/base64"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	// Claims may name any of these.
	_ "crypto/sha256"
	_ "crypto/sha512"
)

// Claim is what a signature says.
type Claim struct {
	// Digest is the manifest or index that was signed.
	Digest digest.Digest
	// Identity is the name that the signer gave the image, like registry.example/app:1. Empty: none.
	Identity string
}

// Forms of a signature.
const (
	FormPayload = "simple signing"
	FormBundle  = "bundle"
)

// Signature is a signature of which nothing is known yet.
type Signature struct {
	// Form tells how it was stored.
	Form    string
	message []byte // what was signed
	sig     []byte
	claims  func() ([]Claim, error)
}

// NewSignature puts a simple signing payload and the text of its annotation together. InvalidArgument: they are larger
// than any, or the text is not base64.
func NewSignature(payload []byte, text string) (*Signature, error) {
	if len(payload) > MaxPayload {
		return nil, fmt.Errorf("payload of %d bytes, the limit is %d: %w", len(payload), MaxPayload, errdefs.ErrInvalidArgument)
	}
	// Some tools break the text into lines.
	sig, err := decodeBase64(strings.NewReplacer("\r", "", "\n", "").Replace(text))
	if err != nil {
		return nil, err
	}
	return &Signature{Form: FormPayload, message: payload, sig: sig, claims: func() ([]Claim, error) {
		claim, err := parsePayload(payload)
		return []Claim{claim}, err
	}}, nil
}

func decodeBase64(text string) ([]byte, error) {
	if len(text) > base64.StdEncoding.EncodedLen(maxSignature) {
		return nil, fmt.Errorf("signature of %d characters: %w", len(text), errdefs.ErrInvalidArgument)
	}
	sig, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil || len(sig) == 0 {
		return nil, fmt.Errorf("signature is not base64: %w", errdefs.ErrInvalidArgument)
	}
	return sig, nil
}

// Verify finds the key that made the signature and returns what it claims. PermissionDenied: none of the keys did.
// InvalidArgument: one did, for a document that is no signature of an image.
func (s *Signature) Verify(keys []*PublicKey) (*PublicKey, []Claim, error) {
	for _, key := range keys {
		if !key.verify(s.message, s.sig) {
			continue
		}
		claims, err := s.claims()
		if err != nil {
			return nil, nil, err
		}
		return key, claims, nil
	}
	return nil, nil, fmt.Errorf("it was not made with the policy's key: %w", errdefs.ErrPermissionDenied)
}
