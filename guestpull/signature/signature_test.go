package signature_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/coffer-project/coffer/guestpull/signature"
	rt "github.com/coffer-project/coffer/integration/registrytest"
	"github.com/coffer-project/coffer/integration/signtest"
	"github.com/coffer-project/coffer/proto/imagepolicy"
	"github.com/coffer-project/coffer/proto/initdata"
)

// TestForms: both forms of signatures are found, made with each kind of key, in registries with and without the referrers
// API, and for the index as for the manifest.
func TestForms(t *testing.T) {
	for _, kind := range signtest.Kinds {
		for _, form := range signtest.Forms {
			for place, prepare := range map[string]func(*scene){
				"no referrers API":        func(*scene) {},
				"referrers API":           func(s *scene) { s.reg.ListReferrers(0) },
				"referrers, page by page": func(s *scene) { s.reg.ListReferrers(1) },
			} {
				t.Run(strings.Join([]string{kind, form, place}, ","), func(t *testing.T) {
					s := newScene(t)
					prepare(s)
					s.key = s.newKey(kind)
					s.sign(s.index.Desc, signtest.Options{Key: s.newKey("ed25519"), Forms: []string{form}})
					s.sign(s.index.Desc, signtest.Options{Forms: []string{form}, Annotations: map[string]string{"build": "7"}})
					v, err := s.check(s.policy(""))
					if err != nil {
						t.Fatal(err)
					}
					a := v.Accepted[0]
					if !v.Signed() || v.Scope != s.name() || a.KeyID != s.key.Public().ID() || a.Digest != s.index.Desc.Digest || a.Identity != s.name() {
						t.Errorf("got %+v", v)
					}
				})
			}
		}
	}
}

// TestDigests: whose signature counts for the manifest that runs.
func TestDigests(t *testing.T) {
	s := newScene(t)
	amd, index := s.amd.Desc.Digest, s.index.Desc.Digest
	byTag := func(d digest.Digest, err error) func(context.Context) (digest.Digest, error) {
		return func(context.Context) (digest.Digest, error) { return d, err }
	}
	for name, tc := range map[string]struct {
		signed []*rt.Image
		img    imagepolicy.Image
		want   digest.Digest // what counted
		err    error
	}{
		"manifest of an index":  {[]*rt.Image{s.amd}, imagepolicy.Image{Manifest: amd, Index: index}, amd, nil},
		"index of a manifest":   {[]*rt.Image{s.index}, imagepolicy.Image{Manifest: amd, Index: index}, index, nil},
		"index behind the tag":  {[]*rt.Image{s.index}, imagepolicy.Image{Manifest: amd, FindIndex: byTag(index, nil)}, index, nil},
		"manifest alone":        {[]*rt.Image{s.amd}, imagepolicy.Image{Manifest: amd}, amd, nil},
		"tag is gone":           {[]*rt.Image{s.amd}, imagepolicy.Image{Manifest: amd, FindIndex: byTag("", errdefs.ErrNotFound)}, amd, nil},
		"tag is not known":      {[]*rt.Image{s.amd}, imagepolicy.Image{Manifest: amd, FindIndex: byTag("", errdefs.ErrUnavailable)}, amd, nil},
		"index is not asked":    {[]*rt.Image{s.index}, imagepolicy.Image{Manifest: amd}, "", errdefs.ErrPermissionDenied},
		"no index behind it":    {[]*rt.Image{s.index}, imagepolicy.Image{Manifest: amd, FindIndex: byTag("", nil)}, "", errdefs.ErrPermissionDenied},
		"index is out of reach": {[]*rt.Image{s.index}, imagepolicy.Image{Manifest: amd, FindIndex: byTag("", errdefs.ErrUnavailable)}, "", errdefs.ErrUnavailable},
		"another manifest":      {[]*rt.Image{s.index}, imagepolicy.Image{Manifest: digest.FromString("x"), Reference: s.name() + "@" + digest.FromString("x").String()}, "", errdefs.ErrPermissionDenied},
	} {
		t.Run(name, func(t *testing.T) {
			key := s.newKey("ecdsa-p256")
			s.T, s.key = t, key
			for _, img := range tc.signed {
				s.sign(img.Desc, signtest.Options{})
			}
			v, err := s.guest(initdata.ImageSettings{SecurityPolicy: s.policy("")}, tc.img)
			if !errors.Is(err, tc.err) {
				t.Fatalf("got %v, want %v", err, tc.err)
			}
			if err == nil && v.Accepted[0].Digest != tc.want {
				t.Errorf("got %+v, want %s", v, tc.want)
			}
		})
	}
}

// TestRequirements: all requirements of the scope hold, and what cannot be checked is refused.
func TestRequirements(t *testing.T) {
	s := newScene(t)
	s.sign(s.index.Desc, signtest.Options{Identity: s.ref})
	other := s.newKey("ed25519")
	s.broker["kbs:///default/keys/app"] = signtest.Public(t, s.key)
	s.broker["kbs:///default/keys/other"] = signtest.Public(t, other)
	s.broker["kbs:///default/keys/broken"] = []byte("x")
	uri := func(names string) string { return `{"type":"sigstoreSigned",` + names + `}` }
	for name, tc := range map[string]struct {
		requirements, word string
		want               error
	}{
		"accept":            {`{"type":"insecureAcceptAnything"}`, "", nil},
		"reject":            {`{"type":"reject"}`, "rejects image", errdefs.ErrPermissionDenied},
		"accept and reject": {`{"type":"insecureAcceptAnything"},{"type":"reject"}`, "rejects", errdefs.ErrPermissionDenied},
		"key of the broker": {uri(`"keyPath":"kbs:///default/keys/app"`), "", nil},
		"one of two keys":   {uri(`"keyPaths":["kbs:///default/keys/other","kbs:///default/keys/app"]`), "", nil},
		"both of two keys": {uri(`"keyPath":"kbs:///default/keys/app"`) + "," + uri(`"keyPath":"kbs:///default/keys/other"`),
			"kbs:///default/keys/other " + other.Public().ID(), errdefs.ErrPermissionDenied},
		"other key":         {uri(`"keyPath":"kbs:///default/keys/other"`), "not made with the policy's key", errdefs.ErrPermissionDenied},
		"key is missing":    {uri(`"keyPath":"kbs:///default/keys/none"`), "kbs:///default/keys/none", errdefs.ErrNotFound},
		"key is broken":     {uri(`"keyPath":"kbs:///default/keys/broken"`), "not PEM", errdefs.ErrInvalidArgument},
		"exact name":        {uri(`"keyPath":"kbs:///default/keys/app","signedIdentity":{"type":"matchExact"}`), "", nil},
		"other name":        {uri(`"keyPath":"kbs:///default/keys/app","signedIdentity":{"type":"exactRepository","dockerRepository":"a.b/c"}`), "it is for", errdefs.ErrPermissionDenied},
		"OpenPGP":           {`{"type":"signedBy","keyType":"GPGKeys","keyPath":"kbs:///default/keys/app"}`, "no OpenPGP keyring", errdefs.ErrInvalidArgument},
		"certificates":      {uri(`"fulcio":{"caData":"x"}`), "fulcio", errdefs.ErrNotImplemented},
		"log beside a key":  {uri(`"keyPath":"kbs:///default/keys/app","rekorPublicKeyData":"x"`), "rekorPublicKeyData", errdefs.ErrNotImplemented},
		"own certificates":  {uri(`"pki":{}`), "pki", errdefs.ErrNotImplemented},
		"accept and signed": {`{"type":"insecureAcceptAnything"},` + uri(`"keyPath":"kbs:///default/keys/app"`), "", nil},
	} {
		t.Run(name, func(t *testing.T) {
			s.T = t
			v, err := s.check(s.rule(tc.requirements))
			if !errors.Is(err, tc.want) || (err != nil && !strings.Contains(err.Error(), tc.word)) {
				t.Fatalf("got %v, want %v with %q", err, tc.want, tc.word)
			}
			if err == nil && v.Signed() != strings.Contains(tc.requirements, "sigstoreSigned") {
				t.Errorf("got %+v", v)
			}
			if err == nil && v.Signed() && v.Accepted[len(v.Accepted)-1].KeyURI != "kbs:///default/keys/app" {
				t.Errorf("got %+v", v)
			}
		})
	}
}

// TestPolicyOfBroker: a policy that the broker has is asked for anew, so that a stricter one holds at once.
func TestPolicyOfBroker(t *testing.T) {
	s := newScene(t)
	const uri = "kbs:///default/policy/images"
	settings := initdata.ImageSettings{SecurityPolicyURI: uri}
	s.broker[uri] = []byte(s.rule(`{"type":"insecureAcceptAnything"}`))
	client := struct{ signature.Registry }{} // no signature is asked for
	checker, err := signature.New(&settings, client, s.broker.fetch)
	if err != nil {
		t.Fatal(err)
	}
	img := imagepolicy.Image{Reference: s.ref, Manifest: s.amd.Desc.Digest}
	if _, err := checker.Check(t.Context(), img); err != nil {
		t.Fatal(err)
	}
	other := img
	other.Reference = strings.Replace(s.ref, repo, "team/other", 1)
	if _, err := checker.Check(t.Context(), other); !errdefs.IsPermissionDenied(err) {
		t.Errorf("another name for the same image: %v", err)
	}
	for policy, want := range map[string]error{
		s.rule(`{"type":"reject"}`): errdefs.ErrPermissionDenied,
		"{}":                        errdefs.ErrInvalidArgument,
	} {
		s.broker[uri] = []byte(policy)
		if _, err := checker.Check(t.Context(), img); !errors.Is(err, want) {
			t.Errorf("%s: %v", policy, err)
		}
	}
	delete(s.broker, uri)
	if _, err := checker.Check(t.Context(), img); !errdefs.IsNotFound(err) {
		t.Errorf("no policy: %v", err)
	}
	if _, err := signature.New(&settings, client, nil); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("no broker: %v", err)
	}
	if none, err := signature.New(&initdata.ImageSettings{}, client, nil); none != nil || err != nil {
		t.Errorf("nothing configured: %v, %v", none, err)
	}
}
