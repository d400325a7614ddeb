// Package oracle checks our signatures against the libraries that others make and check theirs with: sigstore-go, which is
// cosign's, and podman's. It is a module of its own, because they bring far more than Coffer may depend on.
package oracle

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/secure-systems-lab/go-securesystemslib/encrypted"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/root"
	sigstoresign "github.com/sigstore/sigstore-go/pkg/sign"
	"github.com/sigstore/sigstore-go/pkg/verify"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"github.com/sigstore/sigstore/pkg/signature"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/coffer-project/coffer/integration/registrytest"
	"github.com/coffer-project/coffer/owner/seal"
	"github.com/coffer-project/coffer/owner/sign"
	"github.com/coffer-project/coffer/proto/imagepolicy"
	"github.com/coffer-project/coffer/proto/sigstore"
)

// signed is a registry with an image that our tool has signed in both forms.
type signed struct {
	registry *registrytest.Registry
	image    *registrytest.Image
	store    *seal.Registry
	ref      string
	key      *sign.Key
	public   []byte
	// lookaside is where OpenPGP signatures are; empty: nowhere.
	lookaside string
}

func newSigned(t *testing.T, kind, identity string) *signed {
	t.Helper()
	s := &signed{registry: registrytest.Start(t)}
	s.registry.ListReferrers(0)
	s.image = registrytest.NewImage([]registrytest.Layer{registrytest.NewLayer(registrytest.Gzip, registrytest.Entry{Name: "f"})}, nil, nil)
	s.ref = s.registry.Put("team/app", "1", s.image)
	var err error
	if s.store, err = seal.NewRegistry(s.ref, seal.RegistryOptions{PlainHTTP: true}); err != nil {
		t.Fatal(err)
	}
	if s.key, err = sign.Generate(kind); err != nil {
		t.Fatal(err)
	}
	if s.public, err = s.key.EncodePublic(); err != nil {
		t.Fatal(err)
	}
	err = sign.Sign(t.Context(), s.store, s.image.Desc, sign.Options{Key: s.key, Identity: s.registry.Addr() + identity, Annotations: map[string]string{"build": "7"}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// bundle is what we have written.
func (s *signed) bundle(t *testing.T) []byte {
	t.Helper()
	list, err := s.store.Referrers(t.Context(), s.image.Desc.Digest)
	if err != nil || len(list) != 1 {
		t.Fatalf("referrers: %v, %v", list, err)
	}
	raw, err := s.store.Manifest(t.Context(), list[0].Digest, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	if raw, err = s.store.Blob(t.Context(), m.Layers[0]); err != nil {
		t.Fatal(err)
	}
	return raw
}

// accepts asks sigstore-go with a key alone.
func accepts(t *testing.T, raw, public []byte, d digest.Digest) error {
	t.Helper()
	key, err := cryptoutils.UnmarshalPEMToPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := signature.LoadDefaultVerifier(key)
	if err != nil {
		t.Fatal(err)
	}
	trusted := root.NewTrustedPublicKeyMaterial(func(string) (root.TimeConstrainedVerifier, error) {
		return root.NewExpiringKey(verifier, time.Time{}, time.Time{}), nil
	})
	v, err := verify.NewVerifier(trusted, verify.WithNoObserverTimestamps())
	if err != nil {
		t.Fatal(err)
	}
	var b bundle.Bundle
	if err := b.UnmarshalJSON(raw); err != nil {
		return fmt.Errorf("unmarshal: %w", err)
	}
	sum, err := hex.DecodeString(d.Encoded())
	if err != nil {
		t.Fatal(err)
	}
	_, err = v.Verify(&b, verify.NewPolicy(verify.WithArtifactDigest("sha256", sum), verify.WithKey()))
	return err
}

// TestSigstoreAcceptsOurs: what we sign is what cosign's library takes, for this image and this key alone.
func TestSigstoreAcceptsOurs(t *testing.T) {
	for _, kind := range sign.Kinds {
		t.Run(kind, func(t *testing.T) {
			s := newSigned(t, kind, "/team/app:1")
			raw := s.bundle(t)
			if err := accepts(t, raw, s.public, s.image.Desc.Digest); err != nil {
				t.Errorf("ours is refused: %v", err)
			}
			if err := accepts(t, raw, s.public, digest.FromString("another")); err == nil {
				t.Error("ours is taken for another image")
			}
			if err := accepts(t, raw, newSigned(t, kind, "/x").public, s.image.Desc.Digest); err == nil {
				t.Error("ours is taken for another key's")
			}
		})
	}
}

// TestWeAcceptSigstores: bundles that sigstore-go makes as cosign 3 does are found and accepted.
func TestWeAcceptSigstores(t *testing.T) {
	for name, algorithm := range map[string]protocommon.PublicKeyDetails{
		"ecdsa-p256": protocommon.PublicKeyDetails_PKIX_ECDSA_P256_SHA_256,
		"ecdsa-p384": protocommon.PublicKeyDetails_PKIX_ECDSA_P384_SHA_384,
		"ecdsa-p521": protocommon.PublicKeyDetails_PKIX_ECDSA_P521_SHA_512,
		"ed25519":    protocommon.PublicKeyDetails_PKIX_ED25519,
		"ed25519ph":  protocommon.PublicKeyDetails_PKIX_ED25519_PH,
		"rsa":        protocommon.PublicKeyDetails_PKIX_RSA_PKCS1V15_3072_SHA256,
	} {
		t.Run(name, func(t *testing.T) {
			keypair, err := sigstoresign.NewEphemeralKeypair(&sigstoresign.EphemeralKeypairOptions{Algorithm: algorithm})
			if err != nil {
				t.Fatal(err)
			}
			d := digest.FromString("an image")
			statement := fmt.Sprintf(`{"_type":"https://in-toto.io/Statement/v1", "subject":[{"digest":{"sha256":%q}}], "predicateType":%q, "predicate":{}}`,
				d.Encoded(), sigstore.PredicateSignature)
			made, err := sigstoresign.Bundle(&sigstoresign.DSSEData{Data: []byte(statement), PayloadType: "application/vnd.in-toto+json"}, keypair, sigstoresign.BundleOptions{Context: t.Context()})
			if err != nil {
				t.Fatal(err)
			}
			raw, err := protojson.Marshal(made)
			if err != nil {
				t.Fatal(err)
			}
			text, err := keypair.GetPublicKeyPem()
			if err != nil {
				t.Fatal(err)
			}
			public, err := sigstore.ParsePublicKey([]byte(text))
			if err != nil {
				t.Fatal(err)
			}
			if public.Hint() != string(keypair.GetHint()) {
				t.Errorf("hint %s, theirs is %s", public.Hint(), keypair.GetHint())
			}
			s, err := sigstore.ParseBundle(raw)
			if err != nil {
				t.Fatal(err)
			}
			_, claims, err := s.Verify([]*sigstore.PublicKey{public})
			if err != nil || len(claims) != 1 || claims[0] != (sigstore.Claim{Digest: d}) {
				t.Errorf("got %v, %v", claims, err)
			}
		})
	}
}

// TestKeyFiles: our keys open with cosign's library, and its keys with ours.
func TestKeyFiles(t *testing.T) {
	key, err := sign.Generate("ed25519")
	if err != nil {
		t.Fatal(err)
	}
	text, err := key.Encode([]byte("pass"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	der, err := encrypted.Decrypt(block.Bytes, []byte("pass"))
	if err != nil {
		t.Fatalf("theirs on ours: %v", err)
	}
	for name, seal := range map[string]func(der, password []byte) ([]byte, error){
		"as cosign": encrypted.Encrypt,
		"with more rounds": func(der, password []byte) ([]byte, error) {
			return encrypted.EncryptWithCustomKDFParameters(der, password, encrypted.OWASP)
		},
		"as cosign did": func(der, password []byte) ([]byte, error) {
			return encrypted.EncryptWithCustomKDFParameters(der, password, encrypted.Legacy)
		},
	} {
		raw, err := seal(der, []byte("word"))
		if err != nil {
			t.Fatal(err)
		}
		for _, kind := range []string{"ENCRYPTED SIGSTORE PRIVATE KEY", "ENCRYPTED COSIGN PRIVATE KEY"} {
			again, err := sign.ParseKey(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: raw}), []byte("word"))
			if err != nil || again.Public().ID() != key.Public().ID() {
				t.Errorf("%s: ours on theirs: %v", name, err)
			}
		}
	}
}

// ours asks our policy.
func (s *signed) ours(ctx context.Context, policy, ref string) error {
	p, err := imagepolicy.Parse([]byte(policy))
	if err != nil {
		return err
	}
	img := imagepolicy.Image{Reference: ref, Manifest: s.image.Desc.Digest}
	if s.lookaside != "" {
		img.Lookaside = &imagepolicy.Lookaside{Get: s.get, Places: func(context.Context) (*imagepolicy.Places, error) {
			return imagepolicy.ParsePlaces([]byte("default-docker: {lookaside: " + s.lookaside + "}"))
		}}
	}
	_, err = p.Check(ctx, img, s.store, nil)
	return err
}

func (s *signed) policy(identity string) string {
	return fmt.Sprintf(`{"default":[{"type":"reject"}],"transports":{"docker":{%q:[{"type":"sigstoreSigned","keyData":%q,"signedIdentity":%s}]}}}`,
		s.registry.Addr(), base64.StdEncoding.EncodeToString(s.public), identity)
}
