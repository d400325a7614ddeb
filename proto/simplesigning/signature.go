package simplesigning

import (
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/sigstore"
	"github.com/coffer-project/coffer/proto/strictjson"
)

// payloadType is the type of the text (containers-signature(5), "critical.type").
const payloadType = "atomic container signature"

// Signature is a message that was found right.
type Signature struct {
	// Ring is the ring with the key that made it, Fingerprint that key's, in capital hexadecimal digits.
	Ring        *Keyring
	Fingerprint string
	// Claim is what it says.
	Claim sigstore.Claim
}

// Verify reads a message that a key of one of the rings has signed. PermissionDenied: none has, or its key or the way that
// it was made are no longer good. InvalidArgument: the message is no signature of an image. NotImplemented: it is of a kind
// that is not read.
func Verify(raw []byte, rings []*Keyring) (*Signature, error) {
	m, err := parse(raw)
	if err != nil {
		return nil, err
	}
	var by *Signature
	for _, ring := range rings {
		name, err := ring.verify(m)
		switch {
		case errdefs.IsNotFound(err):
		case err != nil:
			return nil, err
		case by == nil:
			by = &Signature{Ring: ring, Fingerprint: name}
		}
	}
	if by == nil {
		return nil, fmt.Errorf("it was not made with the policy's key: %w", errdefs.ErrPermissionDenied)
	}
	if by.Claim, err = parseText(m.text); err != nil {
		return nil, err
	}
	return by, nil
}

// parseText reads what was signed. Members that the format does not know are refused, but for those of optional.
func parseText(raw []byte) (sigstore.Claim, error) {
	claim, optional, err := sigstore.ParsePayload(raw, payloadType)
	if err != nil {
		return claim, err
	}
	var creator string
	var timestamp float64
	if err := strictjson.Open(optional, map[string]any{"creator": &creator, "timestamp": &timestamp}); err != nil {
		return claim, fmt.Errorf("its payload is malformed: optional: %w", err)
	}
	if timestamp != float64(int64(timestamp)) {
		return claim, fmt.Errorf("its payload is malformed: optional.timestamp is no integer: %w", errdefs.ErrInvalidArgument)
	}
	return claim, nil
}
