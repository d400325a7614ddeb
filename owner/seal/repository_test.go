package seal_test

import (
	"errors"
	"net/http"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-project/coffer/integration/registrytest"
	"github.com/coffer-project/coffer/owner/seal"
)

// TestRepository: what lies beside an image can be read and written, with a login where one is wanted, and is checked.
func TestRepository(t *testing.T) {
	r := registrytest.Start(t)
	img := registrytest.NewImage([]registrytest.Layer{registrytest.NewLayer(registrytest.Gzip, registrytest.Entry{Name: "f"})}, nil, nil)
	ref := r.Put("team/app", "1", img)
	r.RequireLogin("me", "word")
	open := func(password string) *seal.Registry {
		t.Helper()
		store, err := seal.NewRegistry(ref, seal.RegistryOptions{
			PlainHTTP: true, Credentials: func(string) (string, string, error) { return "me", password, nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		return store
	}
	store := open("word")
	if store.Name() != r.Addr()+"/team/app" {
		t.Errorf("name %s", store.Name())
	}
	if d, err := store.Tag(t.Context(), "1"); err != nil || d != img.Desc.Digest {
		t.Errorf("tag: %s, %v", d, err)
	}
	if raw, err := store.Manifest(t.Context(), img.Desc.Digest, img.Desc.Size); err != nil || string(raw) != string(img.Raw) {
		t.Errorf("manifest: %v", err)
	}
	if raw, err := store.Blob(t.Context(), img.Manifest.Config); err != nil || int64(len(raw)) != img.Manifest.Config.Size {
		t.Errorf("blob: %v", err)
	}
	if err := store.PutManifest(t.Context(), "2", ocispec.MediaTypeImageManifest, img.Raw); err != nil {
		t.Errorf("put: %v", err)
	}
	if _, err := store.Referrers(t.Context(), img.Desc.Digest); !errdefs.IsNotFound(err) {
		t.Errorf("no referrers API: %v", err)
	}
	r.ListReferrers(0)
	if list, err := store.Referrers(t.Context(), img.Desc.Digest); err != nil || len(list) != 0 {
		t.Errorf("no referrers: %v, %v", list, err)
	}
	r.Inject(registrytest.Fault{Kind: registrytest.Referrers, Action: registrytest.Status, Status: http.StatusMethodNotAllowed})
	r.Inject(registrytest.Fault{Digest: img.Desc.Digest.String(), Action: registrytest.FlipByte})
	for name, tc := range map[string]struct {
		call func() error
		want error
	}{
		"other bytes":    {func() error { _, err := store.Manifest(t.Context(), img.Desc.Digest, img.Desc.Size); return err }, errdefs.ErrFailedPrecondition},
		"too many bytes": {func() error { _, err := store.Manifest(t.Context(), img.Desc.Digest, 10); return err }, errdefs.ErrFailedPrecondition},
		"no digest":      {func() error { _, err := store.Manifest(t.Context(), "x", 10); return err }, errdefs.ErrInvalidArgument},
		"no tag":         {func() error { _, err := store.Tag(t.Context(), "3"); return err }, errdefs.ErrNotFound},
		"no blob": {func() error {
			_, err := store.Blob(t.Context(), ocispec.Descriptor{Digest: digest.FromString("x"), Size: 1})
			return err
		}, errdefs.ErrNotFound},
		"API not allowed": {func() error { _, err := store.Referrers(t.Context(), img.Desc.Digest); return err }, errdefs.ErrNotFound},
		"wrong password":  {func() error { _, err := open("no").Tag(t.Context(), "1"); return err }, errdefs.ErrUnauthenticated},
	} {
		if err := tc.call(); !errors.Is(err, tc.want) {
			t.Errorf("%s: got %v, want %v", name, err, tc.want)
		}
	}
}
