package keyprovider

import (
	"encoding/base64"
	"encoding/json"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/kbs"
)

// ProviderName is the key provider's name in ocicrypt: the last part of the annotation key and of "provider:" recipients.
const ProviderName = "attestation-agent"

// LayerAnnotation is the annotation of an encrypted layer that holds the packet, base64 encoded by ocicrypt.
const LayerAnnotation = "org.opencontainers.image.enc.keys.provider." + ProviderName

// MaxPacket bounds the JSON form of a packet in bytes; an honest one has less than one KiB.
const MaxPacket = 64 << 10

// What the second version of the packet adds, with the values that a first version packet stands for.
const (
	packetVersion = "0.1.0"
	providerKBS   = "kbs"
)

// AnnotationPacket says which key of a broker opens the private options of an encrypted layer. It comes from the registry and is
// trusted for nothing: a wrong one leads to a wrong key or to a refusal.
//
// Two wire forms exist. Version 1 has the four fields kid, wrapped_data, iv and wrap_type; version 2 adds version, provider,
// provider_settings and annotations. Parse reads both, Encode writes version 1, which every reader knows.
type AnnotationPacket struct {
	// KeyID names the 32-byte key encryption key (KEK).
	KeyID kbs.ResourceURI
	// WrappedData is the sealed private options; for A256GCM the 16-byte tag is at its end.
	WrappedData []byte
	// IV has 12 bytes for A256GCM and 16 for A256CTR.
	IV []byte
	// WrapType says how WrappedData is sealed.
	WrapType WrapType
}

// packetJSON is the wire form. Pointers tell absent members from empty ones.
type packetJSON struct {
	Version          *string        `json:"version,omitempty"`
	KeyID            string         `json:"kid"`
	WrappedData      string         `json:"wrapped_data"`
	Provider         *string        `json:"provider,omitempty"`
	IV               string         `json:"iv"`
	WrapType         string         `json:"wrap_type"`
	ProviderSettings map[string]any `json:"provider_settings,omitempty"`
	Annotations      map[string]any `json:"annotations,omitempty"`
}

// ParsePacket reads either wire form. A malformed packet is InvalidArgument; one that needs another key management service than a key
// broker is NotImplemented.
func ParsePacket(raw []byte) (*AnnotationPacket, error) {
	var wire packetJSON
	if err := kbs.DecodeStrict(raw, MaxPacket, &wire); err != nil {
		return nil, fmt.Errorf("annotation packet: %w", err)
	}
	if wire.Version != nil && *wire.Version != packetVersion {
		return nil, fmt.Errorf("annotation packet version is not %s: %w", packetVersion, errdefs.ErrNotImplemented)
	}
	if wire.Provider != nil && *wire.Provider != providerKBS {
		return nil, fmt.Errorf("annotation packet wants another key provider than %q: %w", providerKBS, errdefs.ErrNotImplemented)
	}
	if len(wire.ProviderSettings) > 0 || len(wire.Annotations) > 0 {
		return nil, fmt.Errorf("annotation packet carries settings that a key broker does not take: %w", errdefs.ErrInvalidArgument)
	}
	return wire.packet()
}

func (wire *packetJSON) packet() (*AnnotationPacket, error) {
	uri, err := kbs.ParseResourceURI(wire.KeyID)
	if err != nil {
		return nil, fmt.Errorf("annotation packet kid: %w", err)
	}
	wrapType, err := ParseWrapType(wire.WrapType)
	if err != nil {
		return nil, fmt.Errorf("annotation packet: %w", err)
	}
	iv, err := base64.StdEncoding.Strict().DecodeString(wire.IV)
	if err != nil {
		return nil, fmt.Errorf("annotation packet iv is not base64: %w", errdefs.ErrInvalidArgument)
	}
	wrapped, err := base64.StdEncoding.Strict().DecodeString(wire.WrappedData)
	if err != nil {
		return nil, fmt.Errorf("annotation packet wrapped_data is not base64: %w", errdefs.ErrInvalidArgument)
	}
	p := &AnnotationPacket{KeyID: uri, WrappedData: wrapped, IV: iv, WrapType: wrapType}
	if err := p.Validate(); err != nil {
		return nil, err
	}
	return p, nil
}

// Validate checks names and lengths. Faults are InvalidArgument.
func (p *AnnotationPacket) Validate() error {
	if err := p.KeyID.Validate(); err != nil {
		return fmt.Errorf("annotation packet kid: %w", err)
	}
	ivSize, overhead, err := p.WrapType.sizes()
	if err != nil {
		return fmt.Errorf("annotation packet: %w", err)
	}
	if len(p.IV) != ivSize {
		return fmt.Errorf("annotation packet iv has %d bytes, %s needs %d: %w", len(p.IV), p.WrapType, ivSize, errdefs.ErrInvalidArgument)
	}
	if len(p.WrappedData) <= overhead {
		return fmt.Errorf("annotation packet wrapped_data of %d bytes is too short: %w", len(p.WrappedData), errdefs.ErrInvalidArgument)
	}
	return nil
}

// Encode returns the version 1 wire form.
func (p *AnnotationPacket) Encode() ([]byte, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	raw, err := json.Marshal(packetJSON{
		KeyID:       p.KeyID.String(),
		WrappedData: base64.StdEncoding.EncodeToString(p.WrappedData),
		IV:          base64.StdEncoding.EncodeToString(p.IV),
		WrapType:    string(p.WrapType),
	})
	if err != nil {
		return nil, fmt.Errorf("encode annotation packet: %w", err)
	}
	if len(raw) > MaxPacket {
		return nil, fmt.Errorf("annotation packet of %d bytes is larger than the limit of %d: %w", len(raw), MaxPacket, errdefs.ErrInvalidArgument)
	}
	return raw, nil
}
