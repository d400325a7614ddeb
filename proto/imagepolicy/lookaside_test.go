package imagepolicy

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

func TestPlaces(t *testing.T) {
	p, err := ParsePlaces([]byte(`
default-docker: {sigstore: "https://all.example/"}
docker:
  a.example: {lookaside: https://host.example/x, sigstore: https://older.example, lookaside-staging: file:///x, use-sigstore-attachments: true}
  a.example/team: {sigstore-staging: "file:///only/for/writing"}
  a.example/team/app: {lookaside: http://app.example:8080/a b}
  "*.example": {lookaside: https://domain.example}
  docker.io/library/busybox: {lookaside: https://hub.example}
`))
	if err != nil {
		t.Fatal(err)
	}
	for image, want := range map[string]string{
		"a.example/x:1":                 "https://host.example/x/x@" + where,
		"a.example/team/x:1":            "https://host.example/x/team/x@" + where,
		"a.example/team/app:1":          "http://app.example:8080/a%20b/team/app@" + where,
		"a.example/team/app@" + sha:     "http://app.example:8080/a%20b/team/app@" + where,
		"b.example/x:1":                 "https://domain.example/x@" + where,
		"docker.io/library/busybox:1":   "https://hub.example/library/busybox@" + where,
		"docker.io/library/alpine:1":    "https://all.example/library/alpine@" + where,
		"other.net:5000/team/deep/er:1": "https://all.example/team/deep/er@" + where,
	} {
		n, err := parseImage(image)
		if err != nil {
			t.Fatal(err)
		}
		if got := signatureAddress(p.find(n), n, digest.Digest(sha), 3); got != want {
			t.Errorf("%s: got %s, want %s", image, got, want)
		}
	}
	if empty, err := ParsePlaces([]byte("{}")); err != nil || empty.find(name{repository: "a.example/x"}) != "" {
		t.Errorf("got %v, %v", empty, err)
	}
}

var where = strings.Replace(sha, ":", "=", 1) + "/signature-3"

func TestPlacesRefuse(t *testing.T) {
	one := func(value string) string { return "default-docker: {lookaside: '" + value + "'}" }
	for name, tc := range map[string]struct{ text, word string }{
		"nothing":        {"", "registries.d"},
		"a list":         {"[]", "registries.d"},
		"unknown":        {"dockers: {}", "registries.d"},
		"unknown inside": {"default-docker: {url: https://x}", "registries.d"},
		"twice":          {"docker: {a.b: {}, a.b: {}}", "registries.d"},
		"other case":     {"docker: {a.b: {}, A.b: {}}", "twice"},
		"two documents":  {"{}\n---\n{}", "more than one"},
		"no registry":    {"docker: {busybox: {}}", "no registry"},
		"empty scope":    {"docker: {'': {}}", "empty"},
		"file":           {one("file:///var/lib/containers/sigstore"), "serve the folder by http"},
		"other scheme":   {one("ftp://a.b"), "http://HOST/PATH"},
		"no scheme":      {one("/var/lib"), "http://HOST/PATH"},
		"no host":        {one("http:///x"), "http://HOST/PATH"},
		"opaque":         {one("http:x"), "http://HOST/PATH"},
		"password":       {one("https://u:secret@a.b"), "credentials"},
		"query":          {one("https://a.b/?x=secret"), "query"},
		"malformed":      {one("https://a b:secret"), "no address"},
		"large":          {strings.Repeat("#", maxPlaces+1), "limit"},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := ParsePlaces([]byte(tc.text))
			if p != nil || !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tc.word) || strings.Contains(err.Error(), "secret") {
				t.Errorf("got %v, %v, want %q", p, err, tc.word)
			}
		})
	}
}

func FuzzParsePlaces(f *testing.F) {
	f.Add("default-docker: {lookaside: https://a.b/c}\ndocker: {a.b/c: {sigstore: http://d}}")
	f.Add("a: &a [*a]")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := ParsePlaces([]byte(text))
		if (err == nil) != (p != nil) {
			t.Fatalf("%v, %v", p, err)
		}
		if err == nil && strings.HasPrefix(p.find(name{repository: "a.b/c"}), "file:") {
			t.Error("a file")
		}
	})
}
