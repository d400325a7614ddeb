package sealed

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/strictjson"
)

// Prefix is how every sealed secret begins.
const Prefix = "sealed."

// Version is the only version of the payload.
const Version = "0.1.0"

// MaxText bounds a sealed secret in bytes. It is what Linux takes for one variable.
const MaxText = 128 << 10

// maxName bounds the fields that name something, in bytes.
const maxName = 1024

// The words of unsigned secrets.
const (
	fakeHeader    = "fakejwsheader"
	fakeSignature = "fakesignature"
)

// The types of payloads.
const (
	typeVault    = "vault"
	typeEnvelope = "envelope"
)

// ProviderKBS is the provider that is a key broker.
const ProviderKBS = "kbs"

// WrapAES256GCM is how the secret of an envelope is encrypted.
const WrapAES256GCM = "A256GCM"

// Secret is a sealed secret. Exactly one of Vault and Envelope is set.
type Secret struct {
	// KeyID says where the public key is that checks the signature, usually kbs:///repository/type/tag. Empty: the secret is unsigned.
	KeyID    string
	Vault    *Vault
	Envelope *Envelope

	signed    string // what the signature is over
	signature []byte
}

// Vault points to a secret that is kept elsewhere.
type Vault struct {
	// Provider keeps the secret: ProviderKBS, or a key management service.
	Provider string
	// Name is the secret's name there, with ProviderKBS kbs:///repository/type/tag.
	Name string
	// Settings and Annotations are JSON objects for the provider; nil when absent.
	Settings, Annotations json.RawMessage
}

// Envelope is a secret, encrypted by a key that is encrypted by a provider's key. All parts of it are in the form that the payload has.
type Envelope struct {
	Provider, KeyID string
	// EncryptedKey, EncryptedData and IV are decoded.
	EncryptedKey, EncryptedData, IV []byte
	// WrapType is WrapAES256GCM.
	WrapType              string
	Settings, Annotations json.RawMessage
}

// Is tells whether a value means to be a sealed secret. Whether it is one, Parse says.
func Is(value string) bool { return strings.HasPrefix(value, Prefix) }

// Signed tells whether there is a signature. It says nothing of its worth: see Verify.
func (s *Secret) Signed() bool { return s.KeyID != "" }

// Parse reads a sealed secret. Everything else is InvalidArgument; errors quote no part of the text but names of members.
func Parse(text string) (*Secret, error) {
	bad := func(format string, args ...any) (*Secret, error) {
		return nil, fmt.Errorf("sealed secret: "+format+": %w", append(args, errdefs.ErrInvalidArgument)...)
	}
	if len(text) > MaxText {
		return bad("%d bytes, the limit is %d", len(text), MaxText)
	}
	rest, ok := strings.CutPrefix(text, Prefix)
	parts := strings.Split(rest, ".")
	if !ok || len(parts) != 3 {
		return bad("not %sHEADER.PAYLOAD.SIGNATURE", Prefix)
	}
	payload, err := decode(parts[1])
	if err != nil {
		return bad("payload is not base64url without padding")
	}
	s, err := parsePayload(payload)
	if err != nil {
		return nil, fmt.Errorf("sealed secret: payload: %w", err)
	}
	if parts[0] == fakeHeader && parts[2] == fakeSignature {
		return s, nil
	}
	header, err := decode(parts[0])
	if err != nil {
		return bad("header is neither base64url without padding nor %q with the signature %q", fakeHeader, fakeSignature)
	}
	if s.KeyID, err = parseHeader(header); err != nil {
		return nil, fmt.Errorf("sealed secret: header: %w", err)
	}
	s.signed = parts[0] + "." + parts[1]
	if s.signature, err = decode(parts[2]); err != nil || len(s.signature) != signatureSize {
		return bad("signature is not %d bytes in base64url without padding", signatureSize)
	}
	return s, nil
}

// decode is strict: one value has one text.
func decode(text string) ([]byte, error) {
	if strings.ContainsAny(text, "\r\n") { // which the decoder would skip
		return nil, errdefs.ErrInvalidArgument
	}
	return base64.RawURLEncoding.Strict().DecodeString(text)
}

// parseHeader returns the key's id. Every member that a reader must understand to read the signature right is either known or refused.
func parseHeader(raw []byte) (string, error) {
	var (
		alg, kid, typ string
		encoded       = true
	)
	if err := strictjson.Object(raw, map[string]any{"alg": &alg, "kid": &kid, "typ": &typ, "b64": &encoded}); err != nil {
		return "", err
	}
	switch {
	case alg != algorithm:
		return "", fmt.Errorf("alg is not %s: %w", algorithm, errdefs.ErrInvalidArgument)
	case !encoded:
		return "", fmt.Errorf("b64 is false: %w", errdefs.ErrInvalidArgument)
	case !plain(kid):
		return "", fmt.Errorf("kid is missing, or no plain text of at most %d bytes: %w", maxName, errdefs.ErrInvalidArgument)
	}
	return kid, nil
}

// payload are all members of both types.
type payload struct {
	version, kind, provider     string
	name                        string          // of a vault
	keyID, wrapType             string          // of an envelope, as the next line
	encryptedKey, data, iv      string          // in base64
	providerSettings, annotated json.RawMessage // JSON objects
}

func parsePayload(raw []byte) (*Secret, error) {
	if !utf8.Valid(raw) {
		return nil, fmt.Errorf("not UTF-8: %w", errdefs.ErrInvalidArgument)
	}
	var p payload
	fields := map[string]any{"version": &p.version, "type": &p.kind, "provider": &p.provider, "provider_settings": &p.providerSettings, "annotations": &p.annotated}
	if err := strictjson.Open(raw, map[string]any{"type": &p.kind}); err != nil {
		return nil, err
	}
	switch p.kind {
	case typeVault:
		fields["name"] = &p.name
	case typeEnvelope:
		fields["key_id"], fields["wrap_type"] = &p.keyID, &p.wrapType
		fields["encrypted_key"], fields["encrypted_data"], fields["iv"] = &p.encryptedKey, &p.data, &p.iv
	default:
		return nil, fmt.Errorf("type is neither %q nor %q: %w", typeVault, typeEnvelope, errdefs.ErrInvalidArgument)
	}
	if err := strictjson.Object(raw, fields); err != nil {
		return nil, err
	}
	if p.version != Version {
		return nil, fmt.Errorf("version is not %s: %w", Version, errdefs.ErrInvalidArgument)
	}
	for name, value := range map[string]json.RawMessage{"provider_settings": p.providerSettings, "annotations": p.annotated} {
		if err := checkObject(value); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	if !plain(p.provider) {
		return nil, fmt.Errorf("provider is missing, or no plain text of at most %d bytes: %w", maxName, errdefs.ErrInvalidArgument)
	}
	if p.kind == typeVault {
		return p.vault()
	}
	return p.envelope()
}

func (p *payload) vault() (*Secret, error) {
	if !plain(p.name) {
		return nil, fmt.Errorf("name is missing, or no plain text of at most %d bytes: %w", maxName, errdefs.ErrInvalidArgument)
	}
	return &Secret{Vault: &Vault{Provider: p.provider, Name: p.name, Settings: p.providerSettings, Annotations: p.annotated}}, nil
}

func (p *payload) envelope() (*Secret, error) {
	switch {
	case !plain(p.keyID):
		return nil, fmt.Errorf("key_id is missing, or no plain text of at most %d bytes: %w", maxName, errdefs.ErrInvalidArgument)
	case p.wrapType != WrapAES256GCM:
		return nil, fmt.Errorf("wrap_type is not %s: %w", WrapAES256GCM, errdefs.ErrInvalidArgument)
	}
	e := &Envelope{Provider: p.provider, KeyID: p.keyID, WrapType: p.wrapType, Settings: p.providerSettings, Annotations: p.annotated}
	for _, part := range []struct {
		name, text string
		into       *[]byte
	}{{"encrypted_key", p.encryptedKey, &e.EncryptedKey}, {"encrypted_data", p.data, &e.EncryptedData}, {"iv", p.iv, &e.IV}} {
		value, err := base64.StdEncoding.Strict().DecodeString(part.text)
		if err != nil || len(value) == 0 || strings.ContainsAny(part.text, "\r\n") {
			return nil, fmt.Errorf("%s is missing, or not base64: %w", part.name, errdefs.ErrInvalidArgument)
		}
		*part.into = value
	}
	return &Secret{Envelope: e}, nil
}

// maxSettings bounds the members of the objects for the provider.
const maxSettings = 64

func checkObject(raw json.RawMessage) error {
	if raw == nil {
		return nil
	}
	_, err := strictjson.Members(raw, maxSettings)
	return err
}

// plain accepts what can stand in a line of a log.
func plain(text string) bool {
	if text == "" || len(text) > maxName {
		return false
	}
	for _, r := range text {
		if r < 0x20 || r == 0x7f || r == utf8.RuneError {
			return false
		}
	}
	return true
}
