package signature_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	rt "github.com/coffer-project/coffer/integration/registrytest"
	"github.com/coffer-project/coffer/integration/signtest"
	"github.com/coffer-project/coffer/proto/imagepolicy"
	"github.com/coffer-project/coffer/proto/sigstore"
)

// layersOf makes the same layer n times.
func layersOf(n int, layer ocispec.Descriptor) []ocispec.Descriptor {
	list := make([]ocispec.Descriptor, n)
	for i := range list {
		list[i] = layer
	}
	return list
}

// TestHostilePayloads: what stands at the signatures' tag is from a registry that nobody trusts.
func TestHostilePayloads(t *testing.T) {
	for name, tc := range map[string]struct {
		build func(*scene)
		word  string
		want  error
	}{
		"nothing": {func(*scene) {}, "no signature", errdefs.ErrPermissionDenied},
		"signature of another image": {func(s *scene) {
			other := rt.NewImage(nil, nil, nil)
			s.reg.Put(repo, "2", other)
			s.sign(other.Desc, signtest.Options{Forms: []string{signtest.FormTag}})
			s.attach(false, s.signed(other.Desc.Digest)...)
		}, "for another image", errdefs.ErrPermissionDenied},
		"signature of another name": {func(s *scene) {
			s.sign(s.index.Desc, signtest.Options{Identity: s.reg.Addr() + "/team/other"})
		}, "it is for", errdefs.ErrPermissionDenied},
		"signature of another tag": {func(s *scene) {
			s.sign(s.index.Desc, signtest.Options{Identity: s.name() + ":2", Forms: []string{signtest.FormTag}})
		}, "it is for", errdefs.ErrPermissionDenied},
		"signature of another key": {func(s *scene) {
			s.sign(s.index.Desc, signtest.Options{Key: s.newKey("ecdsa-p256")})
		}, "not made with the policy's key", errdefs.ErrPermissionDenied},
		"payload cut": {func(s *scene) {
			s.sign(s.index.Desc, signtest.Options{Forms: []string{signtest.FormTag}})
			layer := s.signed(s.index.Desc.Digest)[0]
			raw, _ := s.reg.GetBlob(layer.Digest)
			short := s.put(layer.MediaType, raw[:len(raw)/2])
			short.Annotations = layer.Annotations
			s.attach(false, short)
		}, "not made with", errdefs.ErrPermissionDenied},
		"signature cut": {func(s *scene) {
			s.sign(s.index.Desc, signtest.Options{Forms: []string{signtest.FormTag}})
			layer := s.signed(s.index.Desc.Digest)[0]
			layer.Annotations[sigstore.AnnotationSignature] = layer.Annotations[sigstore.AnnotationSignature][:21]
			s.attach(false, layer)
		}, "not base64", errdefs.ErrPermissionDenied},
		"signature missing": {func(s *scene) {
			s.sign(s.index.Desc, signtest.Options{Forms: []string{signtest.FormTag}})
			layer := s.signed(s.index.Desc.Digest)[0]
			layer.Annotations = nil
			s.attach(false, layer)
		}, "not base64", errdefs.ErrPermissionDenied},
		"huge payload": {func(s *scene) {
			s.attach(false, s.put(sigstore.MediaTypePayload, make([]byte, sigstore.MaxPayload+1)))
		}, "the limit is 65536", errdefs.ErrPermissionDenied},
		"size that lies": {func(s *scene) {
			layer := s.put(sigstore.MediaTypePayload, make([]byte, 100))
			layer.Size = -1
			s.attach(false, layer)
		}, "blob", errdefs.ErrPermissionDenied},
		"no image's digest": {func(s *scene) {
			s.attach(false, ocispec.Descriptor{MediaType: sigstore.MediaTypePayload, Digest: "sha256:../../x", Size: 5})
		}, "blob", errdefs.ErrPermissionDenied},
		"huge manifest": {func(s *scene) {
			s.attach(false, layersOf(20000, s.put(sigstore.MediaTypePayload, []byte("{}")))...)
		}, "larger than", errdefs.ErrPermissionDenied},
		"index in place of signatures": {func(s *scene) {
			s.reg.PutManifest(repo, imagepolicy.SignatureTag(s.index.Desc.Digest), s.index.Desc.MediaType, s.index.Raw)
		}, "an index stands where", errdefs.ErrPermissionDenied},
		"signatures under all others": {func(s *scene) {
			s.sign(s.index.Desc, signtest.Options{Forms: []string{signtest.FormTag}})
			bad := s.put(sigstore.MediaTypePayload, []byte("{}"))
			bad.Annotations = map[string]string{sigstore.AnnotationSignature: "eA=="}
			s.attach(false, append(s.signed(s.index.Desc.Digest), layersOf(2000, bad)...)...)
		}, "more reasons", errdefs.ErrPermissionDenied},
		"latest signature of thousands": {func(s *scene) {
			s.sign(s.index.Desc, signtest.Options{Forms: []string{signtest.FormTag}})
			bad := s.put(sigstore.MediaTypePayload, []byte("{}"))
			bad.Annotations = map[string]string{sigstore.AnnotationSignature: "eA=="}
			s.attach(false, append(layersOf(2000, bad), s.signed(s.index.Desc.Digest)...)...)
		}, "", nil},
		"tag is out of reach": {func(s *scene) {
			s.reg.Inject(rt.Fault{Kind: rt.Manifest, Digest: imagepolicy.SignatureTag(s.index.Desc.Digest), Action: rt.Status, Status: http.StatusServiceUnavailable})
		}, "503", errdefs.ErrUnavailable},
		"other bytes": {func(s *scene) {
			s.sign(s.index.Desc, signtest.Options{Forms: []string{signtest.FormTag}})
			s.reg.Inject(rt.Fault{Digest: s.signed(s.index.Desc.Digest)[0].Digest.String(), Action: rt.FlipByte})
		}, "do not match digest", errdefs.ErrPermissionDenied},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			tc.build(s)
			_, err := s.check(s.policy(""))
			if !errors.Is(err, tc.want) || (err != nil && !strings.Contains(err.Error(), tc.word)) {
				t.Errorf("got %v, want %v with %q", err, tc.want, tc.word)
			}
			if err != nil && len(err.Error()) > 4096 {
				t.Errorf("error has %d bytes", len(err.Error()))
			}
		})
	}
}

// TestHostileBundles: the same for referrers.
func TestHostileBundles(t *testing.T) {
	statement := func(doc map[string]any) map[string]any { return doc["dsseEnvelope"].(map[string]any) }
	for name, tc := range map[string]struct {
		edit func(map[string]any)
		word string
	}{
		"unchanged":       {func(map[string]any) {}, ""},
		"keyed otherwise": {func(d map[string]any) { d["verificationMaterial"] = map[string]any{"publicKey": map[string]any{}} }, ""},
		"with a log":      {func(d map[string]any) { d["verificationMaterial"].(map[string]any)["tlogEntries"] = []any{1} }, ""},
		"certificate":     {func(d map[string]any) { d["verificationMaterial"] = map[string]any{"certificate": map[string]any{}} }, "certificate"},
		"no material":     {func(d map[string]any) { delete(d, "verificationMaterial") }, "malformed"},
		"file's":          {func(d map[string]any) { d["messageSignature"] = map[string]any{} }, "signs a file"},
		"no envelope":     {func(d map[string]any) { delete(d, "dsseEnvelope") }, "signs a file"},
		"newer version":   {func(d map[string]any) { d["mediaType"] = "application/vnd.dev.sigstore.bundle.v0.4+json" }, "media type"},
		"unknown member":  {func(d map[string]any) { d["x"] = 1 }, "unknown member"},
		"other type":      {func(d map[string]any) { statement(d)["payloadType"] = "text/plain" }, "envelope has type"},
		"no signatures":   {func(d map[string]any) { statement(d)["signatures"] = []any{} }, "0 signatures"},
		"two signatures": {func(d map[string]any) {
			e := statement(d)
			e["signatures"] = append(e["signatures"].([]any), e["signatures"].([]any)[0])
		}, "2 signatures"},
		"payload cut": {func(d map[string]any) {
			e := statement(d)
			e["payload"] = e["payload"].(string)[:40]
		}, "not made with"},
		"payload no base64": {func(d map[string]any) { statement(d)["payload"] = "%" }, "malformed"},
		"huge":              {func(d map[string]any) { d["dsseEnvelope"] = strings.Repeat("x", sigstore.MaxBundle) }, "the limit is 262144"},
		"deep": {func(d map[string]any) {
			d["verificationMaterial"].(map[string]any)["x"] = json.RawMessage(strings.Repeat("[", 9000) + strings.Repeat("]", 9000))
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			s.reg.ListReferrers(0)
			s.sign(s.index.Desc, signtest.Options{Forms: []string{signtest.FormBundle}})
			changed := s.bundle(tc.edit)
			first, err := s.store().Referrers(t.Context(), s.index.Desc.Digest)
			s.must(err)
			s.attach(true, changed)
			s.reg.PutManifest(repo, first[0].Digest.String(), "application/json", []byte("{}")) // the honest one is gone
			_, err = s.check(s.policy(""))
			if tc.word == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), tc.word) {
				t.Errorf("got %v, want %q", err, tc.word)
			}
		})
	}
}

// TestStatements: a right signature by the right key makes no approval of a statement that is none.
func TestStatements(t *testing.T) {
	for name, tc := range map[string]struct {
		edit func(map[string]any)
		rule string
		word string
	}{
		"unchanged":         {func(map[string]any) {}, "", ""},
		"older type":        {func(d map[string]any) { d["_type"] = "https://in-toto.io/Statement/v0.1" }, "", ""},
		"no name":           {func(d map[string]any) { delete(d["subject"].([]any)[0].(map[string]any), "name") }, "", ""},
		"no name, but rule": {func(d map[string]any) { delete(d["subject"].([]any)[0].(map[string]any), "name") }, `{"type":"matchRepository"}`, "names no image"},
		"name and rule":     {func(map[string]any) {}, `{"type":"matchRepository"}`, ""},
		"several subjects": {func(d map[string]any) {
			d["subject"] = append([]any{map[string]any{"digest": map[string]string{"sha256": strings.Repeat("a", 64)}}}, d["subject"].([]any)...)
		}, "", ""},
		"other name":    {func(d map[string]any) { d["subject"].([]any)[0].(map[string]any)["name"] = "a.b/c" }, "", "it is for a.b/c"},
		"attestation":   {func(d map[string]any) { d["predicateType"] = "https://slsa.dev/provenance/v1" }, "", "no signature"},
		"other type":    {func(d map[string]any) { d["_type"] = "x" }, "", "has type"},
		"no subjects":   {func(d map[string]any) { d["subject"] = []any{} }, "", "about 0 images"},
		"many subjects": {func(d map[string]any) { d["subject"] = make([]any, 65) }, "", "about 65 images"},
		"no digest":     {func(d map[string]any) { delete(d["subject"].([]any)[0].(map[string]any), "digest") }, "", "names no digest"},
		"weak digest": {func(d map[string]any) {
			d["subject"].([]any)[0].(map[string]any)["digest"] = map[string]string{"sha1": "x"}
		}, "", "names no digest"},
		"subject's a text": {func(d map[string]any) { d["subject"] = []any{"x"} }, "", "malformed"},
		"statement's a list": {func(d map[string]any) {
			for k := range d {
				delete(d, k)
			}
		}, "", "has type"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			s.attach(true, s.put(sigstore.MediaTypeBundle, s.statement(tc.edit)))
			more := ""
			if tc.rule != "" {
				more = `,"signedIdentity":` + tc.rule
			}
			_, err := s.check(s.policy(more))
			if tc.word == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), tc.word) {
				t.Errorf("got %v, want %q", err, tc.word)
			}
		})
	}
}

// statement signs an edited statement about the index.
func (s *scene) statement(edit func(map[string]any)) []byte {
	s.Helper()
	body, err := sigstore.EncodeStatement(sigstore.Claim{Digest: s.index.Desc.Digest, Identity: s.name()}, nil)
	s.must(err)
	var doc map[string]any
	s.must(json.Unmarshal(body, &doc))
	edit(doc)
	body, err = json.Marshal(doc)
	s.must(err)
	sig, err := s.key.SignStatement(body)
	s.must(err)
	raw, err := sigstore.EncodeBundle(body, sig, s.key.Public())
	s.must(err)
	return raw
}

// TestHostileReferrers: lists that lie, point at themselves, or drown the signature.
func TestHostileReferrers(t *testing.T) {
	list := func(s *scene, entries ...ocispec.Descriptor) {
		raw, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": ocispec.MediaTypeImageIndex, "manifests": entries})
		s.must(err)
		s.reg.PutManifest(repo, imagepolicy.ReferrersTag(s.index.Desc.Digest), ocispec.MediaTypeImageIndex, raw)
	}
	entry := func(d digest.Digest, size int64) ocispec.Descriptor {
		return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, ArtifactType: sigstore.MediaTypeBundle, Digest: d, Size: size}
	}
	for name, tc := range map[string]struct {
		build func(*scene)
		word  string
	}{
		"list is the image's index": {func(s *scene) {
			s.reg.PutManifest(repo, imagepolicy.ReferrersTag(s.index.Desc.Digest), s.index.Desc.MediaType, s.index.Raw)
		}, "no signature"},
		"entry is the image":  {func(s *scene) { list(s, entry(s.amd.Desc.Digest, s.amd.Desc.Size)) }, "no signature"},
		"entry is the index":  {func(s *scene) { list(s, entry(s.index.Desc.Digest, s.index.Desc.Size)) }, "an index stands"},
		"entry is missing":    {func(s *scene) { list(s, entry(digest.FromString("x"), 9)) }, "no signature"},
		"entry is too large":  {func(s *scene) { list(s, entry(s.amd.Desc.Digest, 1<<30)) }, "1073741824 bytes"},
		"entry without size":  {func(s *scene) { list(s, entry(s.amd.Desc.Digest, 0)) }, "0 bytes"},
		"entry is no digest":  {func(s *scene) { list(s, entry("x", 10)) }, `"x"`},
		"thousands of images": {func(s *scene) { list(s, layersOf(3000, entry(s.amd.Desc.Digest, s.amd.Desc.Size))...) }, "only 64 were looked at"},
		"far too many":        {func(s *scene) { list(s, layersOf(5000, entry(s.amd.Desc.Digest, s.amd.Desc.Size))...) }, "larger than"},
		"list is no list": {func(s *scene) {
			s.reg.PutManifest(repo, imagepolicy.ReferrersTag(s.index.Desc.Digest), ocispec.MediaTypeImageManifest, []byte(`{"manifests":7}`))
		}, "malformed"},
		"API says nonsense": {func(s *scene) {
			s.reg.Inject(rt.Fault{Kind: rt.Referrers, Action: rt.Short})
		}, "malformed"},
		"API has no end": {func(s *scene) { s.reg.Inject(rt.Fault{Kind: rt.Referrers, Action: rt.Endless}) }, "larger than"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			tc.build(s)
			_, err := s.check(s.policy(""))
			if !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), tc.word) {
				t.Errorf("got %v, want %q", err, tc.word)
			}
		})
	}
	t.Run("API is out of reach", func(t *testing.T) {
		s := newScene(t)
		s.sign(s.index.Desc, signtest.Options{Forms: []string{signtest.FormBundle}})
		s.reg.Inject(rt.Fault{Kind: rt.Referrers, Action: rt.Status, Status: http.StatusBadGateway})
		if _, err := s.check(s.policy("")); !errdefs.IsUnavailable(err) || errdefs.IsPermissionDenied(err) {
			t.Errorf("got %v", err)
		}
		for _, unknown := range []int{http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusNotImplemented} {
			s.reg.Heal()
			s.reg.Inject(rt.Fault{Kind: rt.Referrers, Action: rt.Status, Status: unknown})
			if _, err := s.check(s.policy("")); err != nil {
				t.Errorf("registry that answers %d: %v", unknown, err)
			}
		}
	})
	t.Run("signature among many referrers", func(t *testing.T) {
		s := newScene(t)
		s.reg.ListReferrers(7)
		s.sign(s.index.Desc, signtest.Options{Forms: []string{signtest.FormBundle}})
		for i := range 90 {
			raw := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"artifactType":"application/vnd.example.sbom","layers":[],"subject":{"digest":%q,"size":1,"mediaType":"x"},"annotations":{"n":"%d"}}`,
				ocispec.MediaTypeImageManifest, s.index.Desc.Digest, i)
			s.reg.PutManifest(repo, digest.FromBytes(raw).String(), ocispec.MediaTypeImageManifest, raw)
		}
		if _, err := s.check(s.policy("")); err != nil {
			t.Error(err)
		}
	})
}

func FuzzSignature(f *testing.F) {
	key := signtest.NewKey(f, "ed25519")
	body, err := sigstore.EncodeStatement(sigstore.Claim{Digest: digest.FromString("x"), Identity: "a.b/c:1"}, map[string]string{"a": "b"})
	if err != nil {
		f.Fatal(err)
	}
	bundle, err := sigstore.EncodeBundle(body, []byte("sig"), key.Public())
	if err != nil {
		f.Fatal(err)
	}
	payload, err := sigstore.EncodePayload(sigstore.Claim{Digest: digest.FromString("x"), Identity: "a.b/c"}, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(bundle, "")
	f.Add(payload, base64.StdEncoding.EncodeToString([]byte("sig")))
	f.Fuzz(func(t *testing.T, raw []byte, text string) {
		var found []*sigstore.Signature
		if s, err := sigstore.ParseBundle(raw); err == nil {
			found = append(found, s)
		}
		if s, err := sigstore.NewSignature(raw, text); err == nil {
			found = append(found, s)
		}
		for _, s := range found {
			if _, _, err := s.Verify([]*sigstore.PublicKey{key.Public()}); err == nil {
				t.Errorf("a signature was forged: %q", raw)
			}
		}
	})
}
