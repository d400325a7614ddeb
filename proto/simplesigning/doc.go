// Package simplesigning reads and checks the OpenPGP signatures of container images that gpg, podman and skopeo make,
// "simple signing" (containers-signature(5)): a signed message (RFC 9580, section 10.3) whose text is JSON.
//
//	message --split--> one-pass signature | text | signature      (all of it once, perhaps compressed as a whole)
//	                                         |        |
//	keys ------------------------- go-crypto checks both, as a detached signature
//	                                         |
//	                                       claim
//
// The library never sees the message as it came, but only the text and one signature: so there is no second text, nested
// message or unsigned part that it and we could disagree about. gpg compresses what it signs; that is undone here, too,
// within limits.
//
// The package must never fetch anything. The signature is checked before the text is read.
package simplesigning

// Limits of what is parsed, in bytes. Real messages have less than a thousand.
const (
	// MaxMessage bounds a message, before it is decompressed and after.
	MaxMessage = 64 << 10
	maxText    = 16 << 10
	// maxPackets bounds the packets of a message, of which three are wanted.
	maxPackets = 8

	// maxRing bounds a keyring, maxKeys the keys in it.
	maxRing = 256 << 10
	maxKeys = 64
)
