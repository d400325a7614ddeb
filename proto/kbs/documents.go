package kbs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
)

// Version is the one protocol version that both sides accept; Trustee's servers demand exactly this one.
const Version = "0.4.0"

// Where the endpoints are, below the broker's base URL.
const (
	PathAuth     = "/kbs/v0/auth"
	PathAttest   = "/kbs/v0/attest"
	PathResource = "/kbs/v0/resource"
	PathHealth   = "/healthz"
)

// SessionCookie names the cookie that ties /attest and resource requests to the challenge of /auth.
const SessionCookie = "kbs-session-id"

// Size limits in bytes. They bound memory on both sides and are far above what honest peers send.
const (
	MaxRequest     = 64 << 10
	MaxChallenge   = 64 << 10
	MaxAttestation = 4 << 20
	MaxTokenReply  = 256 << 10
	MaxList        = 8 << 20
	MaxProblem     = 64 << 10
	// MaxResource bounds the plain resource: keys, certificates, small configuration.
	MaxResource = 1 << 20
	// MaxResourceReply bounds the sealed resource: base64 and JSON around MaxResource.
	MaxResourceReply = 2 << 20
	// MaxNonce bounds the challenge's nonce; the usual one is 44 characters.
	MaxNonce = 1024
)

// InitDataTOML is the only format of init-data that we send and accept.
const InitDataTOML = "toml"

// Request opens a handshake.
type Request struct {
	Version     string          `json:"version"`
	TEE         TEE             `json:"tee"`
	ExtraParams json.RawMessage `json:"extra-params"`
}

// Challenge is the broker's answer to Request.
type Challenge struct {
	Nonce       string          `json:"nonce"`
	ExtraParams json.RawMessage `json:"extra-params"`
}

// HashParams is the content of extra-params where hash algorithms are negotiated: Supported in a Request, Selected in a Challenge.
type HashParams struct {
	Supported []Hash `json:"supported-hash-algorithms,omitempty"`
	Selected  Hash   `json:"selected-hash-algorithm,omitempty"`
}

// Attestation answers the Challenge.
type Attestation struct {
	// InitData is the whole measured document, or nil. The broker can show its content to the resource policy.
	InitData    *InitData         `json:"init-data,omitempty"`
	RuntimeData RuntimeData       `json:"runtime-data"`
	Evidence    CompositeEvidence `json:"tee-evidence"`
}

// InitData carries the measured document in plain text.
type InitData struct {
	Format string `json:"format"`
	Body   string `json:"body"`
}

// RuntimeData is what the evidence is bound to.
type RuntimeData struct {
	Nonce string `json:"nonce"`
	// TEEPublicKey is a JWK. It stays raw because its canonical form is hashed.
	TEEPublicKey json.RawMessage `json:"tee-pubkey"`
}

// CompositeEvidence is the CPU's evidence and that of devices.
type CompositeEvidence struct {
	Primary json.RawMessage `json:"primary_evidence"`
	// Additional is a JSON document in a string (TEE name to evidence), or empty. It is hashed as the string that it is.
	Additional string `json:"additional_evidence"`
}

// TokenReply is the answer to a good Attestation.
type TokenReply struct {
	Token string `json:"token"`
}

// ResourceList answers an admin's GET of PathResource: the kbs:/// URIs of all resources. It is our addition to the protocol.
type ResourceList struct {
	Resources []string `json:"resources"`
}

// Decode parses one JSON document of at most limit bytes into into. Unlike encoding/json it refuses duplicate members, lone surrogates
// and trailing data, so that two readers of one document cannot see two documents. Unknown members are ignored: the protocol lets peers
// add some. Errors are InvalidArgument and never quote the document.
func Decode(raw []byte, limit int, into any) error {
	return decode(raw, limit, into, false)
}

// DecodeStrict is Decode for documents where an unknown member is a fault too.
func DecodeStrict(raw []byte, limit int, into any) error {
	return decode(raw, limit, into, true)
}

func decode(raw []byte, limit int, into any, strict bool) error {
	if len(raw) > limit {
		return fmt.Errorf("document of %d bytes is larger than the limit of %d: %w", len(raw), limit, errdefs.ErrInvalidArgument)
	}
	if err := checkJSON(raw); err != nil {
		return err
	}
	unmarshal := json.Unmarshal
	if strict {
		unmarshal = unmarshalStrict
	}
	if err := unmarshal(raw, into); err != nil {
		if _, ok := errors.AsType[*json.SyntaxError](err); ok {
			return errNotJSON
		}
		return fmt.Errorf("document does not have the expected shape: %s: %w", shapeError(err), errdefs.ErrInvalidArgument)
	}
	return nil
}

// unmarshalStrict is json.Unmarshal that refuses unknown members.
func unmarshalStrict(raw []byte, into any) error {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errNotJSON // data after the document
	}
	return nil
}

// shapeError says which field is wrong without quoting the value, which may be a secret.
func shapeError(err error) string {
	if typeErr, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return fmt.Sprintf("field %q is a JSON %s", typeErr.Field, kindOnly(typeErr.Value))
	}
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return "it ends early"
	}
	return sanitize(err.Error(), 120)
}

// kindOnly keeps the first word: for numbers encoding/json appends the value.
func kindOnly(value string) string {
	word, _, _ := bytes.Cut([]byte(value), []byte(" "))
	return string(word)
}
