package sigstore

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/coffer-project/coffer/proto/strictjson"
)

// payloadType is the type that cosign and all who read its signatures write.
const payloadType = "cosign container image signature"

// payload is the simple signing document. The order of members is cosign's.
type payload struct {
	Critical struct {
		Identity struct {
			Reference string `json:"docker-reference"`
		} `json:"identity"`
		Image struct {
			Digest digest.Digest `json:"docker-manifest-digest"`
		} `json:"image"`
		Type string `json:"type"`
	} `json:"critical"`
	Optional map[string]string `json:"optional"`
}

// EncodePayload writes the payload for a claim. Annotations may be nil.
func EncodePayload(c Claim, annotations map[string]string) ([]byte, error) {
	var p payload
	p.Critical.Identity.Reference, p.Critical.Image.Digest, p.Critical.Type = c.Identity, c.Digest, payloadType
	p.Optional = annotations
	raw, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("encode payload: %w", err)
	}
	return raw, nil
}

// parsePayload reads cosign's payload.
func parsePayload(raw []byte) (Claim, error) {
	claim, _, err := ParsePayload(raw, payloadType)
	return claim, err
}

// ParsePayload reads a payload of a type, whose signature was found right. The critical part is exactly as specified; the
// optional one, which is returned as it is, may say what it likes. Faults are InvalidArgument.
func ParsePayload(raw []byte, want string) (Claim, json.RawMessage, error) {
	var critical, optional, identity, image json.RawMessage
	var kind string
	var claim Claim
	err := strictjson.Object(raw, map[string]any{"critical": &critical, "optional": &optional})
	if err == nil {
		err = strictjson.Object(critical, map[string]any{"identity": &identity, "image": &image, "type": &kind})
	}
	if err == nil {
		err = errors.Join(
			strictjson.Object(identity, map[string]any{"docker-reference": &claim.Identity}),
			strictjson.Object(image, map[string]any{"docker-manifest-digest": &claim.Digest}),
		)
	}
	switch {
	case err != nil:
		return Claim{}, nil, fmt.Errorf("its payload is malformed: %w", err)
	case kind != want:
		return Claim{}, nil, fmt.Errorf("its payload has type %.64q, want %q: %w", kind, want, errdefs.ErrInvalidArgument)
	case claim.Identity == "":
		return Claim{}, nil, fmt.Errorf("its payload names no image: %w", errdefs.ErrInvalidArgument)
	}
	if err := claim.Digest.Validate(); err != nil {
		return Claim{}, nil, fmt.Errorf("its payload has digest %.128q: %w: %w", claim.Digest, err, errdefs.ErrInvalidArgument)
	}
	return claim, optional, nil
}
