package keyprovider

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/kbs"
)

// KEKSize is the length of a key encryption key in bytes: AES-256.
const KEKSize = 32

// WrapType names the cipher of AnnotationPacket.WrappedData.
type WrapType string

const (
	// WrapGCM is authenticated: a wrong key or a changed packet is noticed by Open.
	WrapGCM WrapType = "A256GCM"
	// WrapCTR is not authenticated; with a wrong key Open returns noise. It is read for compatibility, prefer WrapGCM.
	WrapCTR WrapType = "A256CTR"
)

// ParseWrapType reads the wire form. Other ciphers are InvalidArgument.
func ParseWrapType(text string) (WrapType, error) {
	t := WrapType(text)
	if _, _, err := t.sizes(); err != nil {
		return "", err
	}
	return t, nil
}

// sizes returns the lengths of the IV and of what sealing adds, in bytes.
func (t WrapType) sizes() (iv, overhead int, err error) {
	switch t {
	case WrapGCM:
		return 12, 16, nil
	case WrapCTR:
		return aes.BlockSize, 0, nil
	}
	if len(t) > 32 {
		t = t[:32]
	}
	return 0, 0, fmt.Errorf("wrap_type %q is neither %s nor %s: %w", string(t), WrapGCM, WrapCTR, errdefs.ErrInvalidArgument)
}

// Seal wraps the private options of a layer with the 32-byte KEK that the broker keeps as keyID, under a fresh random IV.
func Seal(kek []byte, keyID kbs.ResourceURI, wrapType WrapType, options []byte) (*AnnotationPacket, error) {
	ivSize, _, err := wrapType.sizes()
	if err != nil {
		return nil, err
	}
	if len(options) == 0 {
		return nil, fmt.Errorf("nothing to wrap: %w", errdefs.ErrInvalidArgument)
	}
	p := &AnnotationPacket{KeyID: keyID, IV: make([]byte, ivSize), WrapType: wrapType}
	rand.Read(p.IV)
	block, err := newBlock(kek)
	if err != nil {
		return nil, err
	}
	switch wrapType {
	case WrapGCM:
		aead, err := cipher.NewGCM(block)
		if err != nil {
			return nil, fmt.Errorf("prepare AES-GCM: %w", err)
		}
		p.WrappedData = aead.Seal(nil, p.IV, options, nil)
	case WrapCTR:
		p.WrappedData = make([]byte, len(options))
		cipher.NewCTR(block, p.IV).XORKeyStream(p.WrappedData, options)
	}
	if err := p.Validate(); err != nil {
		return nil, err
	}
	return p, nil
}

// Open unwraps the private options with the 32-byte KEK. A KEK of another length is InvalidArgument; one that does not fit, or a packet
// that was changed, is PermissionDenied for A256GCM and goes unnoticed for A256CTR: the caller must check what it got.
func (p *AnnotationPacket) Open(kek []byte) ([]byte, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	block, err := newBlock(kek)
	if err != nil {
		return nil, err
	}
	if p.WrapType == WrapCTR {
		options := make([]byte, len(p.WrappedData))
		cipher.NewCTR(block, p.IV).XORKeyStream(options, p.WrappedData)
		return options, nil
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("prepare AES-GCM: %w", err)
	}
	options, err := aead.Open(nil, p.IV, p.WrappedData, nil)
	if err != nil {
		return nil, fmt.Errorf("key %s does not open the layer's wrapped key: the broker holds another key than the one the image was encrypted with, or the image's annotation was changed: %w", p.KeyID, errdefs.ErrPermissionDenied)
	}
	return options, nil
}

func newBlock(kek []byte) (cipher.Block, error) {
	if len(kek) != KEKSize {
		return nil, fmt.Errorf("key encryption key has %d bytes, want %d: %w", len(kek), KEKSize, errdefs.ErrInvalidArgument)
	}
	block, err := aes.NewCipher(kek)
	if err != nil {
		return nil, fmt.Errorf("prepare AES: %w", err)
	}
	return block, nil
}
