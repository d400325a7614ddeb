package imagepolicy

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

const sha = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

// publicKey is a new public key in PEM.
func publicKey(tb testing.TB) string {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		tb.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

func TestParseRefuses(t *testing.T) {
	key := base64.StdEncoding.EncodeToString([]byte(publicKey(t)))
	one := func(requirement string) string { return `{"default":[` + requirement + `]}` }
	signed := func(members string) string { return one(`{"type":"sigstoreSigned",` + members + `}`) }
	identity := func(text string) string { return signed(`"keyData":"` + key + `","signedIdentity":` + text) }
	scope := func(name string) string {
		return `{"default":[{"type":"reject"}],"transports":{"docker":{"` + name + `":[{"type":"reject"}]}}}`
	}
	for name, tc := range map[string]struct {
		text, word string
		want       error
	}{
		"no JSON":             {"x", "not JSON", errdefs.ErrInvalidArgument},
		"a list":              {"[]", "object", errdefs.ErrInvalidArgument},
		"two documents":       {one(`{"type":"reject"}`) + "{}", "not JSON", errdefs.ErrInvalidArgument},
		"empty":               {"{}", "no default", errdefs.ErrInvalidArgument},
		"unknown member":      {`{"default":[{"type":"reject"}],"Default":[]}`, `unknown member "Default"`, errdefs.ErrInvalidArgument},
		"member twice":        {`{"default":[{"type":"reject"}],"default":[{"type":"insecureAcceptAnything"}]}`, "twice", errdefs.ErrInvalidArgument},
		"empty requirements":  {`{"default":[]}`, "empty", errdefs.ErrInvalidArgument},
		"many requirements":   {one(strings.Repeat(`{"type":"reject"},`, 16) + `{"type":"reject"}`), "17 requirements", errdefs.ErrInvalidArgument},
		"null requirements":   {`{"default":null}`, "empty", errdefs.ErrInvalidArgument},
		"unknown type":        {one(`{"type":"signedBaseLayer"}`), "unknown type", errdefs.ErrInvalidArgument},
		"no type":             {one(`{}`), "unknown type", errdefs.ErrInvalidArgument},
		"type of wrong kind":  {one(`{"type":1}`), "wrong kind", errdefs.ErrInvalidArgument},
		"reject with more":    {one(`{"type":"reject","x":1}`), "unknown member", errdefs.ErrInvalidArgument},
		"accept with more":    {one(`{"type":"insecureAcceptAnything","keyData":""}`), "unknown member", errdefs.ErrInvalidArgument},
		"no key":              {one(`{"type":"sigstoreSigned"}`), "exactly one of", errdefs.ErrInvalidArgument},
		"two keys":            {signed(`"keyData":"` + key + `","keyPath":"kbs:///a/b/c"`), "exactly one of", errdefs.ErrInvalidArgument},
		"empty key list":      {signed(`"keyDatas":[]`), "0 keys", errdefs.ErrInvalidArgument},
		"key in a file":       {signed(`"keyPath":"/etc/key.pub"`), "no files", errdefs.ErrInvalidArgument},
		"key not base64":      {signed(`"keyData":"%"`), "base64", errdefs.ErrInvalidArgument},
		"key is none":         {signed(`"keyData":"eA=="`), "not PEM", errdefs.ErrInvalidArgument},
		"unknown identity":    {identity(`{"type":"matchAny"}`), "unknown type", errdefs.ErrInvalidArgument},
		"identity with more":  {identity(`{"type":"matchExact","prefix":"a.b"}`), "unknown member", errdefs.ErrInvalidArgument},
		"reference untagged":  {identity(`{"type":"exactReference","dockerReference":"a.b/c"}`), "neither tag nor digest", errdefs.ErrInvalidArgument},
		"reference missing":   {identity(`{"type":"exactReference"}`), "in full", errdefs.ErrInvalidArgument},
		"repository tagged":   {identity(`{"type":"exactRepository","dockerRepository":"a.b/c:1"}`), "has a tag", errdefs.ErrInvalidArgument},
		"prefix missing":      {identity(`{"type":"remapIdentity","signedPrefix":"a.b"}`), "prefix", errdefs.ErrInvalidArgument},
		"prefix with a tag":   {identity(`{"type":"remapIdentity","prefix":"a.b/c:1","signedPrefix":"a.b"}`), "prefix", errdefs.ErrInvalidArgument},
		"prefix is a pattern": {identity(`{"type":"remapIdentity","prefix":"*.b","signedPrefix":"a.b"}`), "prefix", errdefs.ErrInvalidArgument},
		"short scope":         {scope("busybox"), "in full", errdefs.ErrInvalidArgument},
		"pattern inside":      {scope("a.*.b"), "in full", errdefs.ErrInvalidArgument},
		"pattern with port":   {scope("*.b:1"), "*.domain", errdefs.ErrInvalidArgument},
		"tag and digest":      {scope("a.b/c:1@" + sha), "one of them", errdefs.ErrInvalidArgument},
		"address as scope":    {scope("https://a.b/c"), "in full", errdefs.ErrInvalidArgument},
		"scope in two forms":  {`{"default":[{"type":"reject"}],"transports":{"docker":{"a.b":[{"type":"reject"}],"A.b":[{"type":"reject"}]}}}`, "twice", errdefs.ErrInvalidArgument},
		"bad other transport": {`{"default":[{"type":"reject"}],"transports":{"dir":{"/x":[{"type":"x"}]}}}`, "unknown type", errdefs.ErrInvalidArgument},
		"OpenPGP by file":     {one(`{"type":"signedBy","keyType":"GPGKeys","keyPath":"/x"}`), "no files", errdefs.ErrInvalidArgument},
		"OpenPGP without key": {one(`{"type":"signedBy","keyType":"GPGKeys"}`), "exactly one of", errdefs.ErrInvalidArgument},
		"OpenPGP, no keyring": {one(`{"type":"signedBy","keyType":"GPGKeys","keyData":"` + key + `"}`), "gpg --export", errdefs.ErrInvalidArgument},
		"OpenPGP, keyDatas":   {one(`{"type":"signedBy","keyType":"GPGKeys","keyDatas":["eA=="]}`), "unknown member", errdefs.ErrInvalidArgument},
		"OpenPGP, other keys": {one(`{"type":"signedBy","keyType":"X509Certificates","keyPath":"kbs:///a/b/c"}`), "GPGKeys", errdefs.ErrInvalidArgument},
		"OpenPGP, no type":    {one(`{"type":"signedBy","keyPath":"kbs:///a/b/c"}`), "GPGKeys", errdefs.ErrInvalidArgument},
		"OpenPGP, identity":   {one(`{"type":"signedBy","keyType":"GPGKeys","keyPath":"kbs:///a/b/c","signedIdentity":{"type":"x"}}`), "signedIdentity", errdefs.ErrInvalidArgument},
		"large":               {strings.Repeat(" ", MaxSize) + "{}", "limit", errdefs.ErrInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := Parse([]byte(tc.text))
			if p != nil || !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.word) {
				t.Errorf("got %v, want %v with %q", err, tc.want, tc.word)
			}
		})
	}
}

// TestScopes: of all scopes that an image is under, the most specific one decides.
func TestScopes(t *testing.T) {
	scopes := []string{
		"", "*.example", "*.reg.example", "a.reg.example", "a.reg.example:5000", "a.reg.example:5000/team", "a.reg.example:5000/team/app",
		"a.reg.example:5000/team/app:1", "a.reg.example:5000/team/app@" + sha, "docker.io", "docker.io/library/busybox", "docker.io/team",
		"docker.io/library/busybox:1", "[::1]:5000", "localhost",
	}
	var text strings.Builder
	for i, scope := range scopes {
		fmt.Fprintf(&text, `%s%q:[{"type":"reject"}]`, map[bool]string{true: ","}[i > 0], scope)
	}
	p, err := Parse([]byte(`{"default":[{"type":"reject"}],"transports":{"oci":{"":[{"type":"insecureAcceptAnything"}]},"docker":{` + text.String() + `}}}`))
	if err != nil {
		t.Fatal(err)
	}
	for image, want := range map[string]string{
		"a.reg.example:5000/team/app:1":               "a.reg.example:5000/team/app:1",
		"A.REG.example:5000/team/app:1":               "a.reg.example:5000/team/app:1",
		"a.reg.example:5000/team/app:2":               "a.reg.example:5000/team/app",
		"a.reg.example:5000/team/app@" + sha:          "a.reg.example:5000/team/app@" + sha,
		"a.reg.example:5000/team/app:1@" + sha:        "a.reg.example:5000/team/app@" + sha,
		"a.reg.example:5000/team/app/x:1":             "a.reg.example:5000/team/app",
		"a.reg.example:5000/team/apple:1":             "a.reg.example:5000/team",
		"a.reg.example:5000/teams/app:1":              "a.reg.example:5000",
		"a.reg.example:5001/team/app:1":               "*.reg.example",
		"a.reg.example/team/app:1":                    "a.reg.example",
		"b.reg.example/team/app:1":                    "*.reg.example",
		"x.y.reg.example/team/app:1":                  "*.reg.example",
		"reg.example/app:1":                           "*.example",
		"example.org/app:1":                           dockerTransport,
		"docker.io/library/busybox:1":                 "docker.io/library/busybox:1",
		"docker.io/busybox:1":                         "docker.io/library/busybox:1",
		"index.docker.io/library/busybox:1":           "docker.io/library/busybox:1",
		"docker.io/library/busybox:2":                 "docker.io/library/busybox",
		"docker.io/team/busybox:2":                    "docker.io/team",
		"docker.io/other/busybox:2":                   "docker.io",
		"[::1]:5000/app:1":                            "[::1]:5000",
		"[::1]:5001/app:1":                            dockerTransport,
		"localhost/app:1":                             "localhost",
		"a.reg.example:5000/team/app/team/app/deep:1": "a.reg.example:5000/team/app",
	} {
		n, err := parseName(image)
		if err != nil {
			t.Fatal(err)
		}
		if _, got := p.find(n); got != want {
			t.Errorf("%s: scope %q, want %q", image, got, want)
		}
	}
	bare, err := Parse([]byte(`{"default":[{"type":"reject"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	if _, scope := bare.find(name{repository: "a.b/c"}); scope != "default" {
		t.Errorf("without transports: scope %q", scope)
	}
}

// TestImageNames: the name of an image is what is fetched, and no short form of it.
func TestImageNames(t *testing.T) {
	p, err := Parse([]byte(`{"default":[{"type":"insecureAcceptAnything"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	for reference, want := range map[string]error{
		"docker.io/library/busybox:1":       nil,
		"index.docker.io/library/busybox:1": nil,
		"docker.io/team/app@" + sha:         nil,
		"docker.io/busybox:1":               errdefs.ErrInvalidArgument,
		"index.docker.io/busybox@" + sha:    errdefs.ErrInvalidArgument,
		"busybox":                           errdefs.ErrInvalidArgument,
		"":                                  errdefs.ErrInvalidArgument,
		"a.b/c:1/d":                         errdefs.ErrInvalidArgument,
		"a.b/../c:1":                        errdefs.ErrInvalidArgument,
		"a.b/c@sha256:0":                    errdefs.ErrInvalidArgument,
		"a.b/" + strings.Repeat("c", 1024):  errdefs.ErrInvalidArgument,
	} {
		if _, err := p.Check(t.Context(), Image{Reference: reference}, nil, nil); !errors.Is(err, want) {
			t.Errorf("%.40q: %v", reference, err)
		}
	}
}

func TestMatch(t *testing.T) {
	const app, index = "reg.example/team/app", "index.docker.io/library/busybox"
	for rule, images := range map[string]map[string][2][]string{ // image -> identities that are accepted, refused
		``: {
			app + ":1":                    {{app + ":1", app, ""}, {app + ":2", "reg.example/team/app2", app + "@" + sha, "team/app", "%"}},
			app + "@" + sha:               {{app + ":1", app, "", app + "@" + sha, "REG.example/team/app:9"}, {"reg.example/team/other:1"}},
			app + ":2@" + sha:             {{app + ":1", app, ""}, {"reg.example/team:1"}},
			"docker.io/library/busybox:1": {{index, index + ":1"}, {index + ":2"}},
		},
		`{"type":"matchExact"}`: {
			app + ":1":      {{app + ":1"}, {app, app + ":2", app + "@" + sha, ""}},
			app + "@" + sha: {{app + "@" + sha}, {app + ":1", app, ""}},
		},
		`{"type":"matchRepoDigestOrExact"}`: {
			app + ":1":      {{app + ":1"}, {app, app + ":2", "", app + "@" + sha}},
			app + "@" + sha: {{app + ":1", app + "@" + sha}, {app, "reg.example/team/other:1", ""}},
		},
		`{"type":"matchRepository"}`: {
			app + ":1":      {{app + ":1", app, app + ":2", app + "@" + sha}, {"reg.example/team/other:1", ""}},
			app + "@" + sha: {{app + ":1", app}, {"reg.example/team:1"}},
		},
		`{"type":"exactReference","dockerReference":"pub.example/app:1"}`: {
			app + ":1": {{"pub.example/app:1"}, {app + ":1", "pub.example/app", "pub.example/app:2", ""}},
		},
		`{"type":"exactRepository","dockerRepository":"pub.example/app"}`: {
			app + ":1": {{"pub.example/app:1", "pub.example/app", "pub.example/app@" + sha}, {app + ":1", ""}},
		},
		`{"type":"remapIdentity","prefix":"reg.example/team","signedPrefix":"pub.example"}`: {
			app + ":1":               {{"pub.example/app:1"}, {app + ":1", "pub.example/app", "pub.example/team/app:1"}},
			app + "@" + sha:          {{"pub.example/app:7"}, {app + ":1"}},
			"reg.example/teams/a:1":  {{"reg.example/teams/a:1"}, {"pub.examples/a:1"}},
			"reg.example:1/team/a:1": {{"reg.example:1/team/a:1"}, {"pub.example/a:1"}},
			"other.example/team/a:1": {{"other.example/team/a:1"}, {"pub.example/a:1"}},
		},
		`{"type":"remapIdentity","prefix":"docker.io/library","signedPrefix":"pub.example:5000"}`: {
			"docker.io/library/busybox:1": {{"pub.example:5000/busybox:1"}, {"docker.io/library/busybox:1"}},
		},
	} {
		m, err := parseMatch(map[bool][]byte{true: []byte(rule)}[rule != ""])
		if err != nil {
			t.Fatalf("%s: %v", rule, err)
		}
		for image, identities := range images {
			n, err := parseName(image)
			if err != nil {
				t.Fatal(err)
			}
			for _, claimed := range identities[0] {
				if err := m.accept(n, claimed); err != nil {
					t.Errorf("%s refuses %q for %s: %v", rule, claimed, image, err)
				}
			}
			for _, claimed := range identities[1] {
				if err := m.accept(n, claimed); !errdefs.IsPermissionDenied(err) {
					t.Errorf("%s accepts %q for %s: %v", rule, claimed, image, err)
				}
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(`{"default":[{"type":"reject"}],"transports":{"docker":{"a.b/c":[{"type":"sigstoreSigned","keyPath":"kbs:///a/b/c","signedIdentity":{"type":"remapIdentity","prefix":"a.b","signedPrefix":"c.d"}}],"*.x":[{"type":"signedBy","keyType":"GPGKeys","keyPath":"kbs:///x/y/z"}]}}}`)
	f.Add(`{"default":[{"type":"sigstoreSigned","keyData":` + fmt.Sprintf("%q", publicKey(f)) + `,"rekorPublicKeyData":"x"}]}`)
	f.Fuzz(func(t *testing.T, text string) {
		p, err := Parse([]byte(text))
		if (err == nil) != (p != nil) {
			t.Fatalf("%v, %v", p, err)
		}
		if err != nil {
			return
		}
		for _, image := range []string{"a.b/c:1", "docker.io/library/x@" + sha} {
			n, err := parseName(image)
			if err != nil {
				t.Fatal(err)
			}
			if list, scope := p.find(n); len(list) == 0 || scope == "" {
				t.Errorf("nothing holds for %s", image)
			}
		}
	})
}

func FuzzParseName(f *testing.F) {
	f.Add("docker.io/library/busybox:1@" + sha)
	f.Add("[::1]:5000/a__b/c-d")
	f.Fuzz(func(t *testing.T, text string) {
		n, err := parseName(text)
		if err != nil {
			return
		}
		again, err := parseName(n.String())
		if err != nil || again != n {
			t.Errorf("%q: %v becomes %v, %v", text, n, again, err)
		}
		for _, scope := range n.scopes() {
			if form, err := parseScope(scope); err != nil || form != scope {
				t.Errorf("%q: scope %q can never stand in a policy: %q, %v", text, scope, form, err)
			}
		}
	})
}
