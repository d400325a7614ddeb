// Package image gets a container image into the guest:
//
//	resolve -> verify -> judge -> keys -> fetch | decrypt | decompress | apply -> publish
//
// It is the order of these stages and nothing else; each of them is behind a small interface below. Layers run side by
// side, and within a layer the stages stream: no layer is ever held whole, packed or unpacked, outside of its directory.
//
// A layer becomes visible only after its blob digest, its HMAC (where it is encrypted) and its diff id were all found
// right. Until then it lies in the store's staging directory, and on any error it is removed from there.
//
// Where there is an image security policy, it is asked in each pull, by the digests that were resolved, before the key or
// the first byte of any layer is fetched. Layers that are here from another pull change nothing about that.
//
// The package must never take the right to read a layer from the host: what it trusts is digests and keys.
package image

import (
	"context"
	"io"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/coffer-project/coffer/guestpull/decrypt"
	"github.com/coffer-project/coffer/guestpull/registry"
	"github.com/coffer-project/coffer/guestpull/unpack"
	"github.com/coffer-project/coffer/proto/imagepolicy"
)

// Registry fetches documents and layers. What it returns matches the digest that was asked for.
type Registry interface {
	// Resolve returns the digest behind a reference with a tag.
	Resolve(ctx context.Context, ref string) (digest.Digest, error)
	// Manifest returns an index or a manifest of at most limit bytes.
	Manifest(ctx context.Context, ref string, dgst digest.Digest, limit int64) ([]byte, error)
	// Blob streams a layer or a configuration; its reader gives io.EOF only for exactly the right bytes. sink, unless nil,
	// takes them before they are read.
	// An error with Again() true means that another call may reach a place with the right ones; it ends after a few.
	Blob(ctx context.Context, ref string, desc ocispec.Descriptor, sink registry.Sink) (io.ReadCloser, error)
}

// Verifier reads the documents of an image within limits.
type Verifier interface {
	// Choose returns an index's manifest for a platform, or false for isIndex when raw is a manifest already.
	Choose(raw []byte, platform string) (desc ocispec.Descriptor, isIndex bool, err error)
	Manifest(raw []byte) (*ocispec.Manifest, error)
	// Config reads a configuration that must list that many layers and be for that platform.
	Config(raw []byte, layers int, platform string) (*ocispec.Image, error)
}

// Signatures judges images by the policy of their owner.
type Signatures interface {
	// Check decides whether an image may run, and says why it may.
	Check(ctx context.Context, img imagepolicy.Image) (*imagepolicy.Verdict, error)
}

// Decrypter gets the keys of encrypted layers.
type Decrypter interface {
	// Unlock returns what deciphers the layer's stream; the readers it makes give io.EOF only for authentic bytes.
	Unlock(ctx context.Context, desc ocispec.Descriptor) (layer *decrypt.Layer, keyID string, err error)
}

// Unpacker turns packed layers into directories.
type Unpacker interface {
	// Unpack writes a layer to an empty directory and reads r to its end. When it returns, with an error too, nobody reads r
	// or writes to dir any more. What it cannot do without the layers below is left for Complete.
	Unpack(ctx context.Context, dir string, r io.Reader, l unpack.Layer) (*unpack.Result, error)
	// Complete gets the layers below, lowest first, and returns the sum of the sizes of files that it added.
	Complete(ctx context.Context, dir string, deferred *unpack.Deferred, lower []string) (size int64, err error)
}

// Store keeps unpacked layers, counted by owner.
type Store interface {
	// Place chooses where the layers of an owner go, who is to have these packed sizes at least. It fails with
	// errdefs.ErrResourceExhausted when they do not fit anywhere.
	Place(owner string, sizes map[digest.Digest]int64) error
	// Move chooses a larger place for what the owner has not got yet, and tells whether there is one.
	Move(owner string) bool
	// Explain adds to an error that means a full store what can be done about it.
	Explain(owner string, err error) error
	// Layer returns a layer's directory, which fill makes where it is missing.
	Layer(ctx context.Context, owner string, id digest.Digest, fill func(ctx context.Context, dir string) error) (string, error)
	Release(ctx context.Context, owner string) error
}
