package image_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/coffer-project/coffer/guestpull/decrypt"
	"github.com/coffer-project/coffer/guestpull/image"
	"github.com/coffer-project/coffer/guestpull/registry"
	"github.com/coffer-project/coffer/guestpull/signature"
	"github.com/coffer-project/coffer/guestpull/store"
	"github.com/coffer-project/coffer/guestpull/unpack"
	"github.com/coffer-project/coffer/guestpull/verify"
	rt "github.com/coffer-project/coffer/integration/registrytest"
	"github.com/coffer-project/coffer/integration/require"
	"github.com/coffer-project/coffer/integration/signtest"
	"github.com/coffer-project/coffer/proto/initdata"
)

const policyURI, signKeyURI = "kbs:///default/policy/images", "kbs:///default/keys/app"

// judged is a puller with a policy that the broker has and may replace, and an index that is signed.
type judged struct {
	*image.Puller
	reg        *rt.Registry
	broker     fakeKeys
	dir        string
	amd, index *rt.Image
}

func newJudged(t *testing.T) *judged {
	t.Helper()
	require.Root(t)
	j := &judged{reg: rt.Start(t), broker: fakeKeys{}, dir: t.TempDir()}
	j.amd = imageFor("linux/amd64")
	j.index = rt.NewIndex(map[string]*rt.Image{"linux/amd64": j.amd, "linux/arm64": imageFor("linux/arm64")})
	j.reg.Put("app", "1", j.index)
	client, err := registry.New(registry.Config{Registries: []registry.Registry{{Prefix: j.reg.Addr(), PlainHTTP: true}}, Attempts: 1})
	if err != nil {
		t.Fatal(err)
	}
	checker, err := signature.New(&initdata.ImageSettings{SecurityPolicyURI: policyURI}, client, j.broker.Resource)
	if err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(j.dir)
	if err != nil {
		t.Fatal(err)
	}
	j.Puller = image.New(client, verify.New(verify.DefaultLimits()), decrypt.New(j.broker), unpack.New(unpack.DefaultLimits()), s,
		image.WithPlatform("linux/amd64"), image.WithSignatures(checker))
	return j
}

// policy replaces the requirements for the repositories.
func (j *judged) policy(requirement string, repos ...string) {
	var scopes []string
	for _, repo := range repos {
		scopes = append(scopes, fmt.Sprintf(`"%s/%s":[%s]`, j.reg.Addr(), repo, requirement))
	}
	j.broker[policyURI] = []byte(`{"default":[{"type":"reject"}],"transports":{"docker":{` + strings.Join(scopes, ",") + `}}}`)
}

const wantSigned = `{"type":"sigstoreSigned","keyPath":"` + signKeyURI + `"}`

// sign signs an image with a new key, which the broker has from then on.
func (j *judged) sign(t *testing.T, img *rt.Image) *signtest.Key {
	t.Helper()
	key := signtest.NewKey(t, "ecdsa-p256")
	j.broker[signKeyURI] = signtest.Public(t, key)
	signtest.Sign(t, j.reg, "app", img.Desc, signtest.Options{Key: key})
	return key
}

func (j *judged) pull(ctx context.Context, container, ref string, wish digest.Digest) (*image.Image, error) {
	return j.Pull(ctx, image.Request{ContainerID: container, Reference: ref, Digest: wish.String()})
}

// fetched counts the requests for the layer of the image. Signatures lie in the registry as layers, too.
func (j *judged) fetched() int {
	n := 0
	for _, r := range j.reg.Requests() {
		if r.Object == j.amd.Layers[0].Desc.Digest.String() {
			n++
		}
	}
	return n
}

// TestVerdictComesFirst: an image that the policy refuses costs no byte of a layer.
func TestVerdictComesFirst(t *testing.T) {
	j := newJudged(t)
	j.policy(wantSigned, "app")
	j.sign(t, imageFor("linux/s390x")) // another image, but a key
	_, err := j.pull(t.Context(), "c", j.reg.Ref("app", "1"), "")
	if !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), "image security policy, scope "+j.reg.Addr()+"/app") {
		t.Errorf("got %v", err)
	}
	if n := j.fetched(); n != 0 {
		t.Errorf("%d requests for layers", n)
	}
	wantEmpty(t, j.dir)
}

// TestVerdictByEachName: the signature of an index counts by whichever name and digest the host asks, and the report has it.
func TestVerdictByEachName(t *testing.T) {
	j := newJudged(t)
	j.policy(wantSigned, "app")
	key := j.sign(t, j.index)
	amd, index := j.amd.Desc.Digest, j.index.Desc.Digest
	for name, tc := range map[string]struct {
		ref  string
		wish digest.Digest
		want error
	}{
		"tag":                      {j.reg.Ref("app", "1"), "", nil},
		"tag and index":            {j.reg.Ref("app", "1"), index, nil},
		"tag and manifest":         {j.reg.Ref("app", "1"), amd, nil}, // what containerd knows
		"index":                    {j.reg.Ref("app", index.String()), "", nil},
		"tag with index, manifest": {j.reg.Ref("app", "1") + "@" + index.String(), amd, nil},
		// Nothing then leads from the manifest to what was signed.
		"manifest alone": {j.reg.Ref("app", amd.String()), "", errdefs.ErrPermissionDenied},
	} {
		t.Run(name, func(t *testing.T) {
			img, err := j.pull(t.Context(), "c", tc.ref, tc.wish)
			if !errors.Is(err, tc.want) {
				t.Fatalf("got %v, want %v", err, tc.want)
			}
			if err != nil {
				return
			}
			a := img.Verdict.Accepted[0]
			if img.ManifestDigest != amd || !img.Verdict.Signed() || a.Digest != index || a.KeyURI != signKeyURI || a.KeyID != key.Public().ID() {
				t.Errorf("got %+v", img.Verdict)
			}
			report := img.Report.Proto().GetVerdict()
			if report.GetScope() != j.reg.Addr()+"/app" || report.GetAccepted()[0].GetKeyId() != key.Public().ID() {
				t.Errorf("report has %v", report)
			}
		})
	}
}

// TestTagMoved: a tag that was moved leads to no other image than the signed one.
func TestTagMoved(t *testing.T) {
	j := newJudged(t)
	j.policy(wantSigned, "app")
	j.sign(t, j.index)
	other := rt.NewImage([]rt.Layer{rt.NewLayer(rt.Gzip, rt.Entry{Name: "evil"})}, nil, nil)
	j.reg.Put("app", "1", rt.NewIndex(map[string]*rt.Image{"linux/amd64": other}))
	for name, wish := range map[string]digest.Digest{"none": "", "manifest of before": j.amd.Desc.Digest} {
		if _, err := j.pull(t.Context(), "c", j.reg.Ref("app", "1"), wish); !errdefs.IsPermissionDenied(err) {
			t.Errorf("digest of the host: %s: got %v", name, err)
		}
	}
	if _, err := j.pull(t.Context(), "c", j.reg.Ref("app", "1"), j.index.Desc.Digest); err != nil {
		t.Errorf("digest that was signed: %v", err)
	}
}

// TestVerdictOnCachedLayers: layers that are here, by an earlier pull or for another container, make no difference.
func TestVerdictOnCachedLayers(t *testing.T) {
	j := newJudged(t)
	j.reg.Put("mirror", "1", j.index) // the same image by another name
	j.policy(`{"type":"insecureAcceptAnything"}`, "app")
	if _, err := j.pull(t.Context(), "holder", j.reg.Ref("app", "1"), ""); err != nil {
		t.Fatal(err)
	}
	refused := func(what, ref string) {
		t.Helper()
		if _, err := j.pull(t.Context(), "c2", ref, ""); !errdefs.IsPermissionDenied(err) {
			t.Errorf("%s: got %v", what, err)
		}
	}
	refused("other name", j.reg.Ref("mirror", "1"))
	j.sign(t, imageFor("linux/s390x"))
	j.policy(wantSigned, "app", "mirror")
	refused("stricter policy", j.reg.Ref("app", "1"))
	refused("stricter policy, by digest", j.reg.Ref("app", j.amd.Desc.Digest.String()))
	j.sign(t, j.index)
	refused("signature in another repository", j.reg.Ref("mirror", "1"))
	before := j.fetched()
	if _, err := j.pull(t.Context(), "c2", j.reg.Ref("app", "1"), ""); err != nil {
		t.Errorf("signed: %v", err)
	}
	if n := j.fetched() - before; n != 0 {
		t.Errorf("layers that are here were fetched again: %d requests", n)
	}
}
