package signature_test

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/coffer-project/coffer/integration/pgptest"
	"github.com/coffer-project/coffer/proto/imagepolicy"
	"github.com/coffer-project/coffer/proto/initdata"
)

// lookaside is a web server with signatures.
type lookaside struct {
	*httptest.Server
	mu     sync.Mutex
	files  map[string][]byte
	status map[string]int // in place of a file
	asked  []string
}

func newLookaside(t *testing.T) *lookaside {
	t.Helper()
	l := &lookaside{files: map[string][]byte{}, status: map[string]int{}}
	l.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.asked = append(l.asked, r.URL.Path)
		raw, ok := l.files[r.URL.Path]
		switch {
		case l.status[r.URL.Path] != 0:
			w.WriteHeader(l.status[r.URL.Path])
		case !ok:
			http.NotFound(w, r)
		default:
			_, _ = w.Write(raw)
		}
	}))
	t.Cleanup(l.Close)
	return l
}

func path(d digest.Digest, n int) string {
	return fmt.Sprintf("/sigs/%s@sha256=%s/signature-%d", repo, d.Encoded(), n)
}

// signedBy wants a signature by a key.
func signedBy(t *testing.T, key *pgptest.Key, more string) string {
	t.Helper()
	return `{"type":"signedBy","keyType":"GPGKeys","keyData":"` + base64.StdEncoding.EncodeToString(key.Public(t)) + `"` + more + `}`
}

// TestSignedBy: simple signing from the place that the measured document names.
func TestSignedBy(t *testing.T) {
	s := newScene(t)
	key, other := pgptest.NewKey(t, nil), pgptest.NewKey(t, nil)
	index, amd := s.index.Desc.Digest, s.amd.Desc.Digest
	sign := func(key *pgptest.Key, d digest.Digest, name string) []byte {
		return key.Sign(t, pgptest.Text(d, name), pgptest.Options{}).Whole()
	}
	good := sign(key, index, s.ref)
	s.broker["kbs:///default/keys/ring"] = append(other.Public(t), key.Public(t)...)
	s.broker["kbs:///default/keys/broken"] = []byte("x")
	byURI := func(names string) string { return `{"type":"signedBy","keyType":"GPGKeys",` + names + `}` }
	for name, tc := range map[string]struct {
		files  map[string][]byte
		status map[string]int
		rule   string // empty: signed by key
		img    imagepolicy.Image
		word   string
		want   error
	}{
		"index":                {files: map[string][]byte{path(index, 1): good}},
		"manifest":             {files: map[string][]byte{path(amd, 1): sign(key, amd, s.ref)}},
		"second":               {files: map[string][]byte{path(index, 1): sign(other, index, s.ref), path(index, 2): good}},
		"after noise":          {files: map[string][]byte{path(index, 1): []byte("noise"), path(index, 2): good}},
		"ring of the broker":   {files: map[string][]byte{path(index, 1): good}, rule: byURI(`"keyPath":"kbs:///default/keys/ring"`)},
		"rings of the broker":  {files: map[string][]byte{path(index, 1): good}, rule: byURI(`"keyPaths":["kbs:///default/keys/ring"]`)},
		"both keys":            {files: map[string][]byte{path(index, 1): good, path(index, 2): sign(other, index, s.ref)}, rule: signedBy(t, key, "") + "," + signedBy(t, other, "")},
		"rule":                 {files: map[string][]byte{path(index, 1): sign(key, index, s.name()+":2")}, rule: signedBy(t, key, `,"signedIdentity":{"type":"matchRepository"}`)},
		"by digest":            {files: map[string][]byte{path(index, 1): sign(key, index, s.name()+":2")}, img: imagepolicy.Image{Reference: s.name() + "@" + index.String(), Manifest: amd, Index: index}},
		"one of both keys":     {files: map[string][]byte{path(index, 1): good}, rule: signedBy(t, key, "") + "," + signedBy(t, other, ""), word: "policy's key", want: errdefs.ErrPermissionDenied},
		"none":                 {word: "it has no signature; sign it with skopeo", want: errdefs.ErrPermissionDenied},
		"gap":                  {files: map[string][]byte{path(index, 2): good}, word: "no signature", want: errdefs.ErrPermissionDenied},
		"other key":            {files: map[string][]byte{path(index, 1): sign(other, index, s.ref)}, word: "policy's key", want: errdefs.ErrPermissionDenied},
		"other digest":         {files: map[string][]byte{path(index, 1): sign(key, digest.FromString("x"), s.ref)}, word: "another image", want: errdefs.ErrPermissionDenied},
		"other tag":            {files: map[string][]byte{path(index, 1): sign(key, index, s.name()+":2")}, word: "it is for", want: errdefs.ErrPermissionDenied},
		"other repository":     {files: map[string][]byte{path(index, 1): sign(key, index, s.name()+"x:1")}, word: "it is for", want: errdefs.ErrPermissionDenied},
		"name without a tag":   {files: map[string][]byte{path(index, 1): sign(key, index, s.name())}, word: "it is for", want: errdefs.ErrPermissionDenied},
		"too large":            {files: map[string][]byte{path(index, 1): make([]byte, 64<<10+1)}, word: "more than 65536 bytes", want: errdefs.ErrPermissionDenied},
		"broken ring":          {rule: byURI(`"keyPath":"kbs:///default/keys/broken"`), word: "gpg --export", want: errdefs.ErrInvalidArgument},
		"missing ring":         {rule: byURI(`"keyPath":"kbs:///default/keys/none"`), word: "broker has no", want: errdefs.ErrNotFound},
		"server is busy":       {status: map[string]int{path(index, 1): 503}, word: "503", want: errdefs.ErrUnavailable},
		"server wants a login": {status: map[string]int{path(index, 1): 401}, word: "401", want: errdefs.ErrUnauthenticated},
		"server forbids":       {status: map[string]int{path(index, 1): 403}, word: "403", want: errdefs.ErrPermissionDenied},
		"redirect to nowhere":  {status: map[string]int{path(index, 1): 302}, word: "302", want: errdefs.ErrPermissionDenied},
		"partial answer":       {status: map[string]int{path(index, 1): 206}, word: "206", want: errdefs.ErrPermissionDenied},
		"busy, but manifest's": {status: map[string]int{path(index, 1): 503}, files: map[string][]byte{path(amd, 1): sign(key, amd, s.ref)}},
		"index not to be reached": {files: map[string][]byte{path(index, 1): good}, word: "no signature", want: errdefs.ErrPermissionDenied,
			img: imagepolicy.Image{Reference: s.ref, Manifest: amd}},
	} {
		t.Run(name, func(t *testing.T) {
			s.T = t
			l := newLookaside(t)
			if tc.files != nil {
				l.files = tc.files
			}
			if tc.status != nil {
				l.status = tc.status
			}
			if tc.rule == "" {
				tc.rule = signedBy(t, key, "")
			}
			v, err := s.guest(initdata.ImageSettings{SecurityPolicy: s.rule(tc.rule), SigstoreConfig: "default-docker: {lookaside: " + l.URL + "/sigs}"}, tc.img)
			if !errors.Is(err, tc.want) || (err != nil && !strings.Contains(err.Error(), tc.word)) {
				t.Fatalf("got %v, want %v with %q", err, tc.want, tc.word)
			}
			if err != nil {
				return
			}
			a := v.Accepted[0]
			if !v.Signed() || a.Rule != "signedBy" || a.KeyID != key.Name() || a.Form != "simple signing" || a.Identity == "" || (a.Digest != index && a.Digest != amd) {
				t.Errorf("got %+v", v)
			}
			if strings.Contains(tc.rule, "keyPath") != (a.KeyURI == "kbs:///default/keys/ring") {
				t.Errorf("got %+v", a)
			}
		})
	}
}

// TestLookasideLimits: whoever serves signatures without an end is asked for some of them only.
func TestLookasideLimits(t *testing.T) {
	s := newScene(t)
	l := newLookaside(t)
	for n := range 100 {
		l.files[path(s.index.Desc.Digest, n+1)] = []byte("noise")
	}
	rule := signedBy(t, pgptest.NewKey(t, nil), "")
	_, err := s.guest(initdata.ImageSettings{SecurityPolicy: s.rule(rule + "," + rule), SigstoreConfig: "default-docker: {sigstore: " + l.URL + "/sigs/}"}, imagepolicy.Image{})
	if !errdefs.IsPermissionDenied(err) || len(err.Error()) > 4096 || len(l.asked) != 65 {
		t.Errorf("%d requests, %v", len(l.asked), err)
	}
}

// TestPlaces: where signatures are looked for, by the document or the broker.
func TestPlaces(t *testing.T) {
	s := newScene(t)
	key := pgptest.NewKey(t, nil)
	l := newLookaside(t)
	l.files[path(s.index.Desc.Digest, 1)] = key.Sign(t, pgptest.Text(s.index.Desc.Digest, s.ref), pgptest.Options{}).Whole()
	const uri = "kbs:///default/sigstore/config"
	host := s.reg.Addr()
	for name, tc := range map[string]struct {
		settings initdata.ImageSettings
		broker   string
		word     string
		want     error
	}{
		"scope":         {initdata.ImageSettings{SigstoreConfig: fmt.Sprintf("default-docker: {lookaside: http://none.invalid}\ndocker: {%q: {lookaside: %s/sigs}}", host+"/team", l.URL)}, "", "", nil},
		"broker":        {initdata.ImageSettings{SigstoreConfigURI: uri}, "docker: {" + host + ": {sigstore: " + l.URL + "/sigs}}", "", nil},
		"broken":        {initdata.ImageSettings{SigstoreConfigURI: uri}, "docker: []", "registries.d", errdefs.ErrInvalidArgument},
		"broker lacks":  {initdata.ImageSettings{SigstoreConfigURI: uri}, "", "sigstore_config_uri", errdefs.ErrNotFound},
		"other scope":   {initdata.ImageSettings{SigstoreConfig: "docker: {a.example: {lookaside: https://b.example}}"}, "", "names no lookaside for " + host, errdefs.ErrFailedPrecondition},
		"not a word":    {initdata.ImageSettings{}, "", "write image.sigstore_config", errdefs.ErrFailedPrecondition},
		"another place": {initdata.ImageSettings{SigstoreConfig: "default-docker: {lookaside: " + l.URL + "/other}"}, "", "below " + l.URL + "/other", errdefs.ErrPermissionDenied},
	} {
		t.Run(name, func(t *testing.T) {
			s.T = t
			delete(s.broker, uri)
			if tc.broker != "" {
				s.broker[uri] = []byte(tc.broker)
			}
			tc.settings.SecurityPolicy = s.rule(signedBy(t, key, ""))
			_, err := s.guest(tc.settings, imagepolicy.Image{})
			if !errors.Is(err, tc.want) || (err != nil && !strings.Contains(err.Error(), tc.word)) {
				t.Errorf("got %v, want %v with %q", err, tc.want, tc.word)
			}
		})
	}
}
