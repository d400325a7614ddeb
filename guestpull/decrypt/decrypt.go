// Package decrypt opens layers that were encrypted with ocicrypt (AES_256_CTR_HMAC_SHA256) for the key provider
// "attestation-agent". It unwraps the layer's key with a key of the broker and deciphers the stream in place.
//
// The cipher gives out plaintext before its HMAC is known: whoever reads must treat everything as unproven until io.EOF.
// The package is not built on ocicrypt's own reader, which allocates and copies twice (a third of its time), and links
// none of its other key wrappers into the guest; its tests hold it against ocicrypt.
package decrypt

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/singleflight"

	"github.com/coffer-project/coffer/proto/keyprovider"
)

// The classes of faults, for errors.Is.
var (
	// ErrMalformed is an annotation that cannot be read.
	ErrMalformed = fmt.Errorf("encryption annotation is malformed: %w", errdefs.ErrInvalidArgument)
	// ErrWrongKey is a key that does not open the layer's options.
	ErrWrongKey = fmt.Errorf("key does not fit: %w", errdefs.ErrPermissionDenied)
	// ErrNoKey is a key that could not be had at all; the cause is wrapped beside it.
	ErrNoKey = errors.New("key was not released")
	// ErrTampered is a layer whose bytes do not carry the HMAC that its manifest promises.
	ErrTampered = fmt.Errorf("layer was changed after it was encrypted: %w", errdefs.ErrDataLoss)
)

const (
	pubOptsAnnotation = "org.opencontainers.image.enc.pubopts"
	keysPrefix        = "org.opencontainers.image.enc.keys."
	cipherName        = "AES_256_CTR_HMAC_SHA256"

	// maxAnnotation bounds an annotation in bytes, maxPackets the wrapped keys in it (one per recipient).
	maxAnnotation = 256 << 10
	maxPackets    = 16

	// keyTimeout bounds attestation and release of one key.
	keyTimeout = 2 * time.Minute
)

// KeySource releases keys by their URI (kbs:///repository/type/tag), after attestation where it has to.
type KeySource interface {
	Resource(ctx context.Context, uri string) ([]byte, error)
}

// Decrypter unlocks layers. It keeps the key encryption keys that it was given, in memory, so that all layers and
// containers of a pod cost one fetch per key. It is safe for concurrent use.
type Decrypter struct {
	source KeySource
	flight singleflight.Group

	mu   sync.Mutex
	keks map[string][]byte
}

// New returns a Decrypter. A nil source refuses every encrypted layer.
func New(source KeySource) *Decrypter {
	return &Decrypter{source: source, keks: map[string][]byte{}}
}

// Unlock gets the key of an encrypted layer; keyID names the key that was used. Errors name the layer and, where one was
// chosen, the key; never their content.
func (d *Decrypter) Unlock(ctx context.Context, desc ocispec.Descriptor) (layer *Layer, keyID string, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("unlock layer %s: %w", desc.Digest, err)
		}
	}()
	pub, err := publicOptions(desc.Annotations)
	if err != nil {
		return nil, "", err
	}
	packets, err := packets(desc.Annotations)
	if err != nil {
		return nil, "", err
	}
	if d.source == nil {
		return nil, "", fmt.Errorf("key %s: %w: the guest was given no key broker (kbc in the initdata's cdh.toml): %w",
			packets[0].KeyID, ErrNoKey, errdefs.ErrFailedPrecondition)
	}
	// Several packets are several recipients; one that opens is enough.
	var errs []error
	for _, p := range packets {
		opened, err := d.unwrap(ctx, p, pub)
		if err == nil {
			return opened, p.KeyID.String(), nil
		}
		if ctx.Err() != nil {
			return nil, "", ctx.Err()
		}
		errs = append(errs, fmt.Errorf("key %s: %w", p.KeyID, err))
	}
	return nil, "", errors.Join(errs...)
}

// unwrap opens one packet. A key that was kept and does not fit any more is fetched once again: it may have been replaced.
func (d *Decrypter) unwrap(ctx context.Context, p *keyprovider.AnnotationPacket, pub *publicOpts) (*Layer, error) {
	uri := p.KeyID.String()
	kek, kept, err := d.kek(ctx, uri)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoKey, err)
	}
	opened, err := open(p, kek, pub)
	if err == nil || !kept || !errors.Is(err, ErrWrongKey) {
		return opened, err
	}
	d.forget(uri)
	if kek, _, err = d.kek(ctx, uri); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoKey, err)
	}
	return open(p, kek, pub)
}

// kek returns a key encryption key and whether it was kept from before.
func (d *Decrypter) kek(ctx context.Context, uri string) (kek []byte, kept bool, err error) {
	d.mu.Lock()
	kek, kept = d.keks[uri]
	d.mu.Unlock()
	if kept {
		return kek, true, nil
	}
	result := d.flight.DoChan(uri, func() (any, error) {
		// Whoever asks first must not take the key away from the others when it is cancelled.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), keyTimeout)
		defer cancel()
		kek, err := d.source.Resource(ctx, uri)
		if err != nil {
			return nil, err
		}
		if len(kek) != keyprovider.KEKSize {
			return nil, fmt.Errorf("broker released %d bytes, a key has %d: %w: %w", len(kek), keyprovider.KEKSize, ErrWrongKey, errdefs.ErrInvalidArgument)
		}
		d.mu.Lock()
		d.keks[uri] = kek
		d.mu.Unlock()
		return kek, nil
	})
	select {
	case <-ctx.Done():
		return nil, false, ctx.Err()
	case r := <-result:
		if r.Err != nil {
			return nil, false, r.Err
		}
		return r.Val.([]byte), false, nil
	}
}

func (d *Decrypter) forget(uri string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.keks, uri)
}

// packets reads the wrapped keys of a layer.
func packets(annotations map[string]string) ([]*keyprovider.AnnotationPacket, error) {
	text := annotations[keyprovider.LayerAnnotation]
	if text == "" {
		return nil, missing(annotations)
	}
	if len(text) > maxAnnotation {
		return nil, fmt.Errorf("%s has %d bytes, the limit is %d: %w", keyprovider.LayerAnnotation, len(text), maxAnnotation, ErrMalformed)
	}
	parts := strings.Split(text, ",")
	if len(parts) > maxPackets {
		return nil, fmt.Errorf("%s has %d wrapped keys, the limit is %d: %w", keyprovider.LayerAnnotation, len(parts), maxPackets, ErrMalformed)
	}
	list := make([]*keyprovider.AnnotationPacket, 0, len(parts))
	for i, part := range parts {
		raw, err := base64.StdEncoding.DecodeString(part)
		if err != nil {
			return nil, fmt.Errorf("%s, wrapped key %d: %w: %w", keyprovider.LayerAnnotation, i, err, ErrMalformed)
		}
		p, err := keyprovider.ParsePacket(raw)
		if err != nil {
			return nil, fmt.Errorf("%s, wrapped key %d: %w: %w", keyprovider.LayerAnnotation, i, err, ErrMalformed)
		}
		list = append(list, p)
	}
	return list, nil
}

// missing says for whom the layer was encrypted instead.
func missing(annotations map[string]string) error {
	var others []string
	for key := range annotations {
		if scheme, ok := strings.CutPrefix(key, keysPrefix); ok && len(scheme) < 64 && len(others) < 8 {
			others = append(others, scheme)
		}
	}
	if len(others) == 0 {
		return fmt.Errorf("layer is marked as encrypted and has no wrapped key: %w", ErrMalformed)
	}
	slices.Sort(others)
	return fmt.Errorf("layer is encrypted for %q; a guest can only use keys for provider.%s: %w", others, keyprovider.ProviderName, errdefs.ErrNotImplemented)
}

// publicOpts and privateOpts are ocicrypt's documents; the first lies open in the manifest, the second is wrapped.
type publicOpts struct {
	Cipher  string            `json:"cipher"`
	HMAC    []byte            `json:"hmac"`
	Options map[string][]byte `json:"cipheroptions"`
}

type privateOpts struct {
	Key     []byte            `json:"symkey"`
	Options map[string][]byte `json:"cipheroptions"`
}

func publicOptions(annotations map[string]string) (*publicOpts, error) {
	text := annotations[pubOptsAnnotation]
	if text == "" || len(text) > maxAnnotation {
		return nil, fmt.Errorf("%s has %d bytes: %w", pubOptsAnnotation, len(text), ErrMalformed)
	}
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", pubOptsAnnotation, err, ErrMalformed)
	}
	var pub publicOpts
	if err := json.Unmarshal(raw, &pub); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", pubOptsAnnotation, err, ErrMalformed)
	}
	if pub.Cipher != cipherName {
		return nil, fmt.Errorf("layer cipher %.64q is not supported, want %s: %w", pub.Cipher, cipherName, errdefs.ErrNotImplemented)
	}
	return &pub, nil
}

// open unwraps the layer's own key.
func open(p *keyprovider.AnnotationPacket, kek []byte, pub *publicOpts) (*Layer, error) {
	raw, err := p.Open(kek)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrWrongKey, err)
	}
	var private privateOpts
	if err := json.Unmarshal(raw, &private); err != nil {
		// The cause would quote plaintext. A wrap without authentication shows a wrong key only here.
		return nil, fmt.Errorf("%w: what it opens is not a key document", ErrWrongKey)
	}
	return newLayer(&private, pub)
}
