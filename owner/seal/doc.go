// Package seal encrypts images for guests: it takes an image from a registry or an OCI layout, encrypts its layers with
// ocicrypt's cipher, wraps the layers' keys with a key encryption key (KEK) that a key broker releases to attested guests,
// and writes the result to a registry or a layout. What it makes can be read by our guest and by Confidential Containers'.
//
// Layers stream from source to destination; none is ever held whole. The configuration is copied as it is. The image
// becomes visible under its tag last, after its key was handed to the broker, so nobody can start to pull what cannot be
// opened yet.
//
// The KEK never goes anywhere but to the KeyStore.
package seal

import (
	"context"
	"io"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-project/coffer/proto/kbs"
)

// Source is where an image comes from.
type Source interface {
	// Resolve returns the manifest or index that the reference names.
	Resolve(ctx context.Context) (ocispec.Descriptor, error)
	// Fetch streams content. The caller compares size and digest.
	Fetch(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error)
	// String names the source for messages.
	String() string
}

// Destination is where an image goes to.
type Destination interface {
	// Exists reports whether a blob is there already.
	Exists(ctx context.Context, desc ocispec.Descriptor) (bool, error)
	// Write stores a blob whose digest is known only at its end.
	Write(ctx context.Context, r io.Reader) (digest.Digest, int64, error)
	// WriteManifest stores a manifest or index; tagged makes it the one that the destination's reference names.
	WriteManifest(ctx context.Context, desc ocispec.Descriptor, raw []byte, tagged bool) error
	String() string
}

// KeyStore takes key encryption keys for guests to fetch.
type KeyStore interface {
	Put(ctx context.Context, uri kbs.ResourceURI, key []byte) error
}

// Event reports progress on one layer.
type Event struct {
	// Layer is the digest of the plain layer, Platform its image's platform (empty for an image without an index).
	Layer    digest.Digest
	Platform string
	// Done and Total are bytes of the packed layer.
	Done, Total int64
}
