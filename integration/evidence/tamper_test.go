package evidence

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/proto/kbs"
)

// roundTrip is an http.RoundTripper.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// tampering is a client whose attestations somebody edits on their way.
func tampering(t *testing.T, edit func(*testing.T, *kbs.Attestation)) *http.Client {
	t.Helper()
	return &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
		if !strings.HasSuffix(r.URL.Path, kbs.PathAttest) {
			return http.DefaultTransport.RoundTrip(r)
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		var a kbs.Attestation
		if err := json.Unmarshal(body, &a); err != nil {
			return nil, err
		}
		edit(t, &a)
		if body, err = json.Marshal(a); err != nil {
			return nil, err
		}
		changed := r.Clone(r.Context())
		changed.Body, changed.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		return http.DefaultTransport.RoundTrip(changed)
	})}
}
