// Package signtest signs images of a test's registry with the owner's own tool.
package signtest

import (
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-project/coffer/integration/registrytest"
	"github.com/coffer-project/coffer/owner/seal"
	"github.com/coffer-project/coffer/owner/sign"
)

type (
	// Key is the tool's.
	Key = sign.Key
	// Options are the tool's.
	Options = sign.Options
)

// The forms of signatures.
const (
	FormTag    = sign.FormTag
	FormBundle = sign.FormBundle
)

// Forms and Kinds are all forms of signatures and all kinds of keys.
var (
	Forms = sign.Forms
	Kinds = sign.Kinds
)

// NewKey makes a key.
func NewKey(tb testing.TB, kind string) *Key {
	tb.Helper()
	key, err := sign.Generate(kind)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

// Public is the public key in PEM.
func Public(tb testing.TB, key *Key) []byte {
	tb.Helper()
	text, err := key.EncodePublic()
	if err != nil {
		tb.Fatal(err)
	}
	return text
}

// Repository is a repository of the registry as an image's owner sees it.
func Repository(tb testing.TB, r *registrytest.Registry, repo string) *seal.Registry {
	tb.Helper()
	store, err := seal.NewRegistry(r.Ref(repo, "any"), seal.RegistryOptions{PlainHTTP: true})
	if err != nil {
		tb.Fatal(err)
	}
	return store
}

// Sign signs a document of a repository, by the repository's name where the options have none.
func Sign(tb testing.TB, r *registrytest.Registry, repo string, target ocispec.Descriptor, o Options) {
	tb.Helper()
	store := Repository(tb, r, repo)
	if o.Identity == "" {
		o.Identity = store.Name()
	}
	if err := sign.Sign(tb.Context(), store, target, o); err != nil {
		tb.Fatal(err)
	}
}
