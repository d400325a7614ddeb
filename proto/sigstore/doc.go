// Package sigstore reads, checks and writes the signatures of container images that cosign makes with keys, in both of
// their forms:
//
//   - the older one: a "simple signing" payload (containers-signature(5)) in the manifest that the tag sha256-HEX.sig
//     names, with the signature in an annotation;
//   - the one of cosign 3: a Sigstore bundle (protobuf-specs, version 0.1 to 0.3) with a DSSE envelope around an in-toto
//     statement, which is found by the referrers of the image.
//
// Only keys count. Certificates (Fulcio) and transparency logs (Rekor) need a service or a trust root and are not looked
// at: a guest must be able to judge an image without asking anybody but its registry and its key broker.
//
// The package must never fetch anything. Whatever it parses is bounded by its caller's limits and by those below; a
// signature is checked before the document that it covers is read.
package sigstore

// Media types and names of both forms.
const (
	// MediaTypePayload is a simple signing payload; AnnotationSignature, beside it, has the signature in base64.
	MediaTypePayload    = "application/vnd.dev.cosign.simplesigning.v1+json"
	AnnotationSignature = "dev.cosignproject.cosign/signature"
	// ArtifactTypePayload is the manifest of payloads that are found by referrers, as cosign 2 writes with OCI 1.1.
	ArtifactTypePayload = "application/vnd.dev.cosign.artifact.sig.v1+json"

	// MediaTypeBundle is the bundle that we write. All that we read begin with MediaTypeBundles.
	MediaTypeBundle  = MediaTypeBundles + ".v0.3+json"
	MediaTypeBundles = "application/vnd.dev.sigstore.bundle"
	// AnnotationPredicate of a bundle's manifest says what the bundle is for, AnnotationContent what it has inside.
	AnnotationPredicate = "dev.sigstore.bundle.predicateType"
	AnnotationContent   = "dev.sigstore.bundle.content"
	// ContentDSSE is the only content that signatures of images have.
	ContentDSSE = "dsse-envelope"

	// PredicateSignature makes a statement a signature of an image. Statements of other types say something else about
	// it, for example which faults a scanner has found: they are no approval.
	PredicateSignature = "https://sigstore.dev/cosign/sign/v1"
)

// Limits of what is parsed, in bytes. Real payloads have some hundred, bundles some thousand.
const (
	MaxPayload = 64 << 10
	MaxBundle  = 256 << 10
	maxKey     = 16 << 10
	// maxSignature is beyond what an RSA key of 16384 bits makes.
	maxSignature = 4 << 10
	// maxSubjects bounds the images that one statement is about.
	maxSubjects = 64
)
