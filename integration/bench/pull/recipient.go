package main

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containers/ocicrypt/config"
	"github.com/containers/ocicrypt/keywrap/jwe"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-project/coffer/owner/seal"
	"github.com/coffer-project/coffer/proto/keyprovider"
)

const (
	jweAnnotation = "org.opencontainers.image.enc.keys.jwe"
	privateFile   = "private.pem"
)

// privateKey is the file with the second recipient's key.
func (img *image) privateKey() string { return filepath.Join(img.dir, privateFile) }

// addRecipient wraps the layers' keys for a second recipient, who has an RSA key: older tools know no key providers.
func addRecipient(ctx context.Context, dir string) error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	private := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	if err := os.WriteFile(filepath.Join(dir, privateFile), private, 0o600); err != nil {
		return err
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return err
	}
	public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	layout := seal.NewLayout(dir, tag)
	m, err := readManifest(ctx, layout)
	if err != nil {
		return err
	}
	for i := range m.Layers {
		if err := wrapAgain(m.Layers[i].Annotations, public); err != nil {
			return fmt.Errorf("add a recipient to layer %d: %w", i, err)
		}
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return err
	}
	// The tag moves on; the manifest with the one recipient stays behind and harms nobody.
	return layout.WriteManifest(ctx, ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}, raw, true)
}

func wrapAgain(annotations map[string]string, public []byte) error {
	raw, err := base64.StdEncoding.DecodeString(annotations[keyprovider.LayerAnnotation])
	if err != nil {
		return err
	}
	packet, err := keyprovider.ParsePacket(raw)
	if err != nil {
		return err
	}
	options, err := packet.Open(kek[:])
	if err != nil {
		return err
	}
	wrapped, err := jwe.NewKeyWrapper().WrapKeys(&config.EncryptConfig{Parameters: map[string][][]byte{"pubkeys": {public}}}, options)
	if err != nil {
		return err
	}
	annotations[jweAnnotation] = base64.StdEncoding.EncodeToString(wrapped)
	return nil
}
