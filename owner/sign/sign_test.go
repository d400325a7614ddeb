package sign

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-project/coffer/integration/registrytest"
	"github.com/coffer-project/coffer/owner/seal"
	"github.com/coffer-project/coffer/proto/imagepolicy"
)

func generate(t *testing.T, kind string) *Key {
	t.Helper()
	key, err := Generate(kind)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func open(t *testing.T, ref string) *seal.Registry {
	t.Helper()
	store, err := seal.NewRegistry(ref, seal.RegistryOptions{PlainHTTP: true})
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// TestSignatureIsAdded: signatures that are there stay, also those that we would not have made so.
func TestSignatureIsAdded(t *testing.T) {
	r := registrytest.Start(t)
	img := registrytest.NewImage([]registrytest.Layer{registrytest.NewLayer(registrytest.Gzip, registrytest.Entry{Name: "f"})}, nil, nil)
	store := open(t, r.Put("app", "1", img))
	tag, list := imagepolicy.SignatureTag(img.Desc.Digest), imagepolicy.ReferrersTag(img.Desc.Digest)
	foreign := ocispec.Descriptor{MediaType: "application/x", Digest: img.Desc.Digest, Size: 7, Annotations: map[string]string{"a": "b"}}
	raw, err := json.Marshal(ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Layers: []ocispec.Descriptor{foreign}, Annotations: map[string]string{"keep": "me"}})
	if err != nil {
		t.Fatal(err)
	}
	r.PutManifest("app", tag, ocispec.MediaTypeImageManifest, raw)
	for range 2 {
		if err := Sign(t.Context(), store, img.Desc, Options{Key: generate(t, "ed25519"), Identity: store.Name()}); err != nil {
			t.Fatal(err)
		}
	}
	var m ocispec.Manifest
	_, raw, _ = r.GetManifest("app", tag)
	if err := json.Unmarshal(raw, &m); err != nil || len(m.Layers) != 3 || m.Layers[0].Annotations["a"] != "b" || m.Annotations["keep"] != "me" {
		t.Errorf("signatures: %v, %s", err, raw)
	}
	var config ocispec.Image
	blob, _ := r.GetBlob(m.Config.Digest)
	if err := json.Unmarshal(blob, &config); err != nil || len(config.RootFS.DiffIDs) != 3 {
		t.Errorf("configuration: %v, %s", err, blob)
	}
	_, raw, _ = r.GetManifest("app", list)
	if found, err := imagepolicy.ParseReferrers(raw); err != nil || len(found) != 2 || found[0].Digest == found[1].Digest {
		t.Errorf("referrers: %v, %v", found, err)
	}
}

// TestSignRefuses: what stands where signatures belong is not replaced, and failures of the registry are told.
func TestSignRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil func(r *registrytest.Registry, tag, list string)
		want  error
	}{
		"index at the tag": {func(r *registrytest.Registry, tag, _ string) {
			r.PutManifest("app", tag, ocispec.MediaTypeImageIndex, []byte(`{"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`))
		}, errdefs.ErrFailedPrecondition},
		"no manifest at the tag": {func(r *registrytest.Registry, tag, _ string) {
			r.PutManifest("app", tag, ocispec.MediaTypeImageManifest, []byte(`x`))
		}, errdefs.ErrFailedPrecondition},
		"manifest in place of referrers": {func(r *registrytest.Registry, _, list string) {
			r.PutManifest("app", list, ocispec.MediaTypeImageManifest, []byte(`{}`))
		}, errdefs.ErrInvalidArgument},
		"no right to push": {func(r *registrytest.Registry, _, _ string) {
			r.Inject(registrytest.Fault{Method: http.MethodPut, Kind: registrytest.Manifest, Action: registrytest.Status, Status: http.StatusForbidden})
		}, errdefs.ErrPermissionDenied},
	} {
		t.Run(name, func(t *testing.T) {
			r := registrytest.Start(t)
			img := registrytest.NewImage([]registrytest.Layer{registrytest.NewLayer(registrytest.Gzip, registrytest.Entry{Name: "f"})}, nil, nil)
			store := open(t, r.Put("app", "1", img))
			tc.spoil(r, imagepolicy.SignatureTag(img.Desc.Digest), imagepolicy.ReferrersTag(img.Desc.Digest))
			if err := Sign(t.Context(), store, img.Desc, Options{Key: generate(t, "ed25519"), Identity: store.Name()}); !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
		})
	}
}

func TestParseKey(t *testing.T) {
	block := func(kind string, der []byte, err error) string {
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sec1, err1 := x509.MarshalECPrivateKey(p256)
	pkcs8, err2 := x509.MarshalPKCS8PrivateKey(p256)
	long, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other, err3 := x509.MarshalECPrivateKey(p224)
	sealed, err := generate(t, "ecdsa-p256").Encode([]byte("pass"))
	if err != nil {
		t.Fatal(err)
	}
	inside, _ := pem.Decode(sealed)
	kdf := func(old, replaced string) string {
		return block(encryptedType, []byte(strings.Replace(string(inside.Bytes), old, replaced, 1)), nil)
	}
	for name, tc := range map[string]struct {
		text, password string
		want           error
	}{
		"SEC 1":             {block("EC PRIVATE KEY", sec1, err1), "", nil},
		"PKCS #8":           {block("PRIVATE KEY", pkcs8, err2), "", nil},
		"PKCS #1":           {block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(long), nil), "", nil},
		"encrypted":         {string(sealed), "pass", nil},
		"wrong password":    {string(sealed), "word", errdefs.ErrPermissionDenied},
		"no password":       {string(sealed), "", errdefs.ErrPermissionDenied},
		"other curve":       {block("EC PRIVATE KEY", other, err3), "", errdefs.ErrNotImplemented},
		"weak derivation":   {kdf(`"N":65536`, `"N":1`), "pass", errdefs.ErrNotImplemented},
		"endless":           {kdf(`"N":65536`, `"N":1073741824`), "pass", errdefs.ErrNotImplemented},
		"other derivation":  {kdf(`"scrypt"`, `"argon2"`), "pass", errdefs.ErrNotImplemented},
		"other cipher":      {kdf(`"nacl/secretbox"`, `"none"`), "pass", errdefs.ErrNotImplemented},
		"not JSON":          {block(encryptedType, []byte("x"), nil), "pass", errdefs.ErrInvalidArgument},
		"not PEM":           {"x", "", errdefs.ErrInvalidArgument},
		"certificate":       {block("CERTIFICATE", sec1, nil), "", errdefs.ErrInvalidArgument},
		"PKCS #8, cut":      {block("PRIVATE KEY", pkcs8[:20], nil), "", errdefs.ErrInvalidArgument},
		"wrong kind of PEM": {block("EC PRIVATE KEY", pkcs8, nil), "", errdefs.ErrInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			key, err := ParseKey([]byte(tc.text), []byte(tc.password))
			if !errors.Is(err, tc.want) || (err == nil) != (key != nil) {
				t.Errorf("got %v, %v", key, err)
			}
		})
	}
	if _, err := Generate("dsa"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("unknown kind: %v", err)
	}
}
