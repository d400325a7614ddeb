package signature_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-project/coffer/guestpull/registry"
	"github.com/coffer-project/coffer/guestpull/signature"
	rt "github.com/coffer-project/coffer/integration/registrytest"
	"github.com/coffer-project/coffer/integration/signtest"
	"github.com/coffer-project/coffer/proto/imagepolicy"
	"github.com/coffer-project/coffer/proto/initdata"
	"github.com/coffer-project/coffer/proto/sigstore"
)

// resources is what a key broker has.
type resources map[string][]byte

func (r resources) fetch(_ context.Context, uri string) ([]byte, error) {
	if raw, ok := r[uri]; ok {
		return raw, nil
	}
	return nil, fmt.Errorf("broker has no %s: %w", uri, errdefs.ErrNotFound)
}

// scene is a registry with one image for two platforms, and the key of who made it.
type scene struct {
	*testing.T
	reg    *rt.Registry
	index  *rt.Image
	amd    *rt.Image
	ref    string // by tag
	key    *signtest.Key
	broker resources
}

const repo = "team/app"

func newScene(t *testing.T) *scene {
	t.Helper()
	image := func(arch string) *rt.Image {
		layer := rt.NewLayer(rt.Gzip, rt.Entry{Name: "arch", Body: arch})
		return rt.NewImage([]rt.Layer{layer}, func(c *ocispec.Image) { c.Architecture = arch }, nil)
	}
	s := &scene{T: t, reg: rt.Start(t), amd: image("amd64"), broker: resources{}}
	s.index = rt.NewIndex(map[string]*rt.Image{"linux/amd64": s.amd, "linux/arm64": image("arm64")})
	s.ref = s.reg.Put(repo, "1", s.index)
	s.key = s.newKey("ecdsa-p256")
	return s
}

func (s *scene) newKey(kind string) *signtest.Key {
	s.Helper()
	return signtest.NewKey(s.T, kind)
}

func (s *scene) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s *scene) name() string { return s.reg.Addr() + "/" + repo }

// store is the repository as an image owner sees it.
func (s *scene) store() imagepolicy.Repository {
	s.Helper()
	return signtest.Repository(s.T, s.reg, repo)
}

// sign signs a document of the registry.
func (s *scene) sign(target ocispec.Descriptor, o signtest.Options) {
	s.Helper()
	if o.Key == nil {
		o.Key = s.key
	}
	signtest.Sign(s.T, s.reg, repo, target, o)
}

// policy wants a signature by the scene's key for the repository.
func (s *scene) policy(more string) string {
	s.Helper()
	return s.rule(`{"type":"sigstoreSigned","keyData":"` + base64.StdEncoding.EncodeToString(signtest.Public(s.T, s.key)) + `"` + more + `}`)
}

func (s *scene) rule(requirements string) string {
	return fmt.Sprintf(`{"default":[{"type":"reject"}],"transports":{"docker":{%q:[%s]}}}`, s.name(), requirements)
}

// guest asks the policy as a guest does.
func (s *scene) guest(settings initdata.ImageSettings, img imagepolicy.Image) (*imagepolicy.Verdict, error) {
	s.Helper()
	client, err := registry.New(registry.Config{Registries: []registry.Registry{{Prefix: s.reg.Addr(), PlainHTTP: true}}, Attempts: 1})
	s.must(err)
	checker, err := signature.New(&settings, client, s.broker.fetch)
	s.must(err)
	if img.Reference == "" {
		img.Reference = s.ref
	}
	if img.Manifest == "" {
		img.Manifest, img.Index = s.amd.Desc.Digest, s.index.Desc.Digest
	}
	return checker.Check(s.Context(), img)
}

// check asks a policy that is measured.
func (s *scene) check(policy string) (*imagepolicy.Verdict, error) {
	s.Helper()
	return s.guest(initdata.ImageSettings{SecurityPolicy: policy}, imagepolicy.Image{})
}

// put stores a document as a blob.
func (s *scene) put(mediaType string, raw []byte) ocispec.Descriptor {
	d := rt.Descriptor(mediaType, raw)
	s.reg.PutBlob(d.Digest, raw)
	return d
}

// attach stores a manifest with layers, at the signatures' tag of the index, or as its referrer.
func (s *scene) attach(referring bool, layers ...ocispec.Descriptor) digest.Digest {
	s.Helper()
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Layers: layers, Config: s.put(ocispec.MediaTypeImageConfig, []byte("{}"))}
	name := imagepolicy.SignatureTag(s.index.Desc.Digest)
	if referring {
		s.reg.ListReferrers(0)
		m.ArtifactType, m.Subject = sigstore.MediaTypeBundle, &s.index.Desc
	}
	raw, err := json.Marshal(m)
	s.must(err)
	if referring {
		name = digest.FromBytes(raw).String()
	}
	s.reg.PutManifest(repo, name, m.MediaType, raw)
	return digest.FromBytes(raw)
}

// signed returns the layers of a signature's manifest as the signer made them.
func (s *scene) signed(d digest.Digest) []ocispec.Descriptor {
	s.Helper()
	_, raw, ok := s.reg.GetManifest(repo, imagepolicy.SignatureTag(d))
	if !ok {
		s.Fatal("there is no signature")
	}
	var m ocispec.Manifest
	s.must(json.Unmarshal(raw, &m))
	return m.Layers
}

// bundle returns the bundle that refers to the index, changed by edits, as a blob of the registry.
func (s *scene) bundle(edit func(map[string]any)) ocispec.Descriptor {
	s.Helper()
	s.reg.ListReferrers(0)
	list, err := s.store().Referrers(s.Context(), s.index.Desc.Digest)
	if err != nil || len(list) != 1 {
		s.Fatalf("referrers: %v, %v", list, err)
	}
	raw, err := s.store().Manifest(s.Context(), list[0].Digest, 1<<20)
	s.must(err)
	var m ocispec.Manifest
	s.must(json.Unmarshal(raw, &m))
	raw, ok := s.reg.GetBlob(m.Layers[0].Digest)
	if !ok {
		s.Fatal("there is no bundle")
	}
	var doc map[string]any
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	s.must(dec.Decode(&doc))
	edit(doc)
	raw, err = json.Marshal(doc)
	s.must(err)
	return s.put(sigstore.MediaTypeBundle, raw)
}
