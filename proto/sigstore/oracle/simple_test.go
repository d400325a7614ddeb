package oracle

import (
	"bytes"
	"compress/flate"
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/opencontainers/go-digest"

	"github.com/coffer-project/coffer/guestpull/registry"
	"github.com/coffer-project/coffer/integration/pgptest"
)

// get fetches as guests do.
func (s *signed) get(ctx context.Context, address string, limit int64) ([]byte, error) {
	client, err := registry.New(registry.Config{Attempts: 1})
	if err != nil {
		return nil, err
	}
	return client.Get(ctx, address, limit)
}

// serve serves one message as the first signature of every digest.
func (s *signed) serve(t *testing.T, message []byte) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != fmt.Sprintf("/sigs/team/app@sha256=%s/signature-1", s.image.Desc.Digest.Encoded()) {
			http.NotFound(w, r)
			return
		}
		if _, err := w.Write(message); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(server.Close)
	s.lookaside = server.URL + "/sigs"
}

// zip packs a message as gpg does.
func zip(t *testing.T, raw []byte) []byte {
	t.Helper()
	out := bytes.NewBuffer([]byte{0xa3, 1})
	w, err := flate.NewWriter(out, 6)
	if err == nil {
		_, err = w.Write(raw)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestSameVerdictsOnSimpleSigning: podman and we decide alike about OpenPGP signatures, good and bad, and find them at the
// same address.
func TestSameVerdictsOnSimpleSigning(t *testing.T) {
	s := newSigned(t, "ed25519", "/elsewhere")
	host, d := s.registry.Addr(), s.image.Desc.Digest
	day := func(n int) func() time.Time {
		return func() time.Time { return time.Now().Add(time.Duration(n) * 24 * time.Hour) }
	}
	key, other := pgptest.NewKey(t, nil), pgptest.NewKey(t, nil)
	old := pgptest.NewKey(t, &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA, Time: day(-9), KeyLifetimeSecs: 24 * 3600})
	revoked := pgptest.NewKey(t, &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA, Time: day(-9)})
	if err := revoked.Revoke(packet.KeySuperseded, "", nil); err != nil {
		t.Fatal(err)
	}
	sub := pgptest.NewKey(t, nil)
	if err := sub.AddSigningSubkey(nil); err != nil {
		t.Fatal(err)
	}
	text := pgptest.Text(d, s.ref)
	sign := func(key *pgptest.Key, text []byte) []byte { return key.Sign(t, text, pgptest.Options{}).Whole() }
	good := key.Sign(t, text, pgptest.Options{})
	change := func(from, to string) []byte {
		return sign(key, []byte(strings.Replace(string(text), from, to, 1)))
	}
	for name, tc := range map[string]struct {
		message  []byte
		key      *pgptest.Key // that the policy has
		identity string
		ref      string
		want     bool
	}{
		"good":                {message: good.Whole(), want: true},
		"zip":                 {message: zip(t, good.Whole()), want: true},
		"subkey":              {message: sub.Sign(t, text, pgptest.Options{Subkey: true}).Whole(), key: sub, want: true},
		"by digest":           {message: sign(key, pgptest.Text(d, host+"/team/app:7")), ref: host + "/team/app@" + d.String(), want: true},
		"exact by digest":     {message: good.Whole(), ref: host + "/team/app@" + d.String(), identity: `{"type":"matchExact"}`},
		"exact":               {message: good.Whole(), identity: `{"type":"matchExact"}`, want: true},
		"repository":          {message: sign(key, pgptest.Text(d, host+"/team/app:7")), identity: `{"type":"matchRepository"}`, want: true},
		"no tag":              {message: sign(key, pgptest.Text(d, host+"/team/app"))},
		"other tag":           {message: sign(key, pgptest.Text(d, host+"/team/app:7"))},
		"other repository":    {message: sign(key, pgptest.Text(d, host+"/team/apps:1"))},
		"other digest":        {message: sign(key, pgptest.Text(digest.FromString("x"), s.ref))},
		"other key":           {message: sign(other, text)},
		"expired key":         {message: old.Sign(t, text, pgptest.Options{Time: day(-8)().Add(-time.Hour)}).Whole(), key: old},
		"revoked key":         {message: revoked.Sign(t, text, pgptest.Options{Time: day(-1)()}).Whole(), key: revoked},
		"detached":            {message: good.Signature},
		"not signed":          {message: good.Literal},
		"changed":             {message: bytes.Join([][]byte{good.OnePass, pgptest.Literal(t, append(bytes.Clone(text), ' ')), good.Signature}, nil)},
		"unknown critical":    {message: change(`"critical":{`, `"critical":{"x":1,`)},
		"critical twice":      {message: change(`"critical":{`, `"critical":{},"critical":{`)},
		"cosign's type":       {message: change("atomic", "cosign")},
		"no optional":         {message: change(`,"optional":{"creator":"test","timestamp":1700000000}`, "")},
		"further optional":    {message: change(`"creator"`, `"x":[1],"creator"`), want: true},
		"creator of any kind": {message: change(`"test"`, `1`)},
		"half a second":       {message: change(`1700000000`, `0.5`)},
		"noise":               {message: []byte("noise")},
	} {
		t.Run(name, func(t *testing.T) {
			s.serve(t, tc.message)
			if tc.key == nil {
				tc.key = key
			}
			identity := ""
			if tc.identity != "" {
				identity = `,"signedIdentity":` + tc.identity
			}
			if tc.ref == "" {
				tc.ref = s.ref
			}
			policy := fmt.Sprintf(`{"default":[{"type":"reject"}],"transports":{"docker":{%q:[{"type":"signedBy","keyType":"GPGKeys","keyData":%q%s}]}}}`,
				host, base64.StdEncoding.EncodeToString(tc.key.Public(t)), identity)
			theirs, ours := s.podman(t, policy, tc.ref), s.ours(t.Context(), policy, tc.ref)
			if (theirs == nil) != tc.want || (ours == nil) != tc.want {
				t.Errorf("podman says %v, we say %v, want %t", theirs, ours, tc.want)
			}
		})
	}
}
