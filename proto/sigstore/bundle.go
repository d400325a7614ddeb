package sigstore

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/coffer-project/coffer/proto/strictjson"
)

const (
	statementType    = "https://in-toto.io/Statement/v1"
	oldStatementType = "https://in-toto.io/Statement/v0.1"
	statementMedia   = "application/vnd.in-toto+json"
)

// bundleVersions are the media types of all versions that we read.
var bundleVersions = []string{
	MediaTypeBundle, MediaTypeBundles + "+json;version=0.3", MediaTypeBundles + "+json;version=0.2", MediaTypeBundles + "+json;version=0.1",
}

// ParseBundle reads a bundle. InvalidArgument: it is none. NotImplemented: a bundle of another kind: one that was made
// with a certificate, or for something else than an image.
func ParseBundle(raw []byte) (*Signature, error) {
	if len(raw) > MaxBundle {
		return nil, fmt.Errorf("bundle of %d bytes, the limit is %d: %w", len(raw), MaxBundle, errdefs.ErrInvalidArgument)
	}
	var mediaType string
	var material, envelope, message, key json.RawMessage
	if err := strictjson.Object(raw, map[string]any{
		"mediaType": &mediaType, "verificationMaterial": &material, "dsseEnvelope": &envelope, "messageSignature": &message,
	}); err != nil {
		return nil, fmt.Errorf("bundle is malformed: %w", err)
	}
	switch {
	case !slices.Contains(bundleVersions, mediaType):
		return nil, fmt.Errorf("bundle has media type %.80q: %w", mediaType, errdefs.ErrNotImplemented)
	case message != nil || envelope == nil:
		return nil, fmt.Errorf("bundle signs a file and not a statement about an image: %w", errdefs.ErrNotImplemented)
	}
	if err := strictjson.Open(material, map[string]any{"publicKey": &key}); err != nil {
		return nil, fmt.Errorf("bundle is malformed: %w", err)
	}
	if key == nil {
		return nil, fmt.Errorf("bundle was made with a certificate, and only keys are accepted: %w", errdefs.ErrNotImplemented)
	}
	return parseEnvelope(envelope)
}

// parseEnvelope reads a DSSE envelope. One in a bundle has one signature.
func parseEnvelope(raw []byte) (*Signature, error) {
	var media, body, text, keyID string
	var signatures []json.RawMessage
	if err := strictjson.Object(raw, map[string]any{"payload": &body, "payloadType": &media, "signatures": &signatures}); err != nil {
		return nil, fmt.Errorf("envelope is malformed: %w", err)
	}
	if media != statementMedia {
		return nil, fmt.Errorf("envelope has type %.64q: %w", media, errdefs.ErrNotImplemented)
	}
	if len(signatures) != 1 {
		return nil, fmt.Errorf("envelope has %d signatures, want one: %w", len(signatures), errdefs.ErrInvalidArgument)
	}
	if err := strictjson.Object(signatures[0], map[string]any{"sig": &text, "keyid": &keyID}); err != nil {
		return nil, fmt.Errorf("envelope is malformed: %w", err)
	}
	statement, err := base64.StdEncoding.Strict().DecodeString(body)
	if err != nil {
		return nil, fmt.Errorf("envelope is malformed: %w", errdefs.ErrInvalidArgument)
	}
	sig, err := decodeBase64(text)
	if err != nil {
		return nil, err
	}
	return &Signature{
		Form: FormBundle, message: preAuthEncoding(media, statement), sig: sig,
		claims: func() ([]Claim, error) { return parseStatement(statement) },
	}, nil
}

// preAuthEncoding is what is signed in place of a statement (DSSE protocol, version 1.0).
func preAuthEncoding(media string, body []byte) []byte {
	return append(fmt.Appendf(nil, "DSSEv1 %d %s %d ", len(media), media, len(body)), body...)
}

// parseStatement reads an in-toto statement whose signature was found right.
func parseStatement(raw []byte) ([]Claim, error) {
	var kind, predicate string
	var subjects []json.RawMessage
	if err := strictjson.Open(raw, map[string]any{"_type": &kind, "subject": &subjects, "predicateType": &predicate}); err != nil {
		return nil, fmt.Errorf("its statement is malformed: %w", err)
	}
	switch {
	case kind != statementType && kind != oldStatementType:
		return nil, fmt.Errorf("its statement has type %.64q: %w", kind, errdefs.ErrNotImplemented)
	case predicate != PredicateSignature:
		return nil, fmt.Errorf("it is a statement of type %.128q and no signature: %w", predicate, errdefs.ErrNotImplemented)
	case len(subjects) == 0 || len(subjects) > maxSubjects:
		return nil, fmt.Errorf("its statement is about %d images: %w", len(subjects), errdefs.ErrInvalidArgument)
	}
	var claims []Claim
	for _, raw := range subjects {
		var name string
		sums := map[string]string{}
		if err := strictjson.Open(raw, map[string]any{"name": &name, "digest": &sums}); err != nil {
			return nil, fmt.Errorf("its statement is malformed: %w", err)
		}
		for _, algorithm := range slices.Sorted(maps.Keys(sums)) {
			d := digest.NewDigestFromEncoded(digest.Algorithm(algorithm), sums[algorithm])
			if d.Validate() == nil {
				claims = append(claims, Claim{Digest: d, Identity: name})
			}
		}
	}
	if len(claims) == 0 {
		return nil, fmt.Errorf("its statement names no digest: %w", errdefs.ErrInvalidArgument)
	}
	return claims, nil
}

// statement is what EncodeStatement writes.
type statement struct {
	Type          string    `json:"_type"`
	Subject       []subject `json:"subject"`
	PredicateType string    `json:"predicateType"`
	Predicate     struct{}  `json:"predicate"`
}

type subject struct {
	Name        string            `json:"name,omitempty"`
	Digest      map[string]string `json:"digest"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// StatementMessage is what is signed for a statement.
func StatementMessage(body []byte) []byte { return preAuthEncoding(statementMedia, body) }

// EncodeStatement writes the statement for a claim. Annotations may be nil.
func EncodeStatement(c Claim, annotations map[string]string) ([]byte, error) {
	body, err := json.Marshal(statement{
		Type: statementType, PredicateType: PredicateSignature,
		Subject: []subject{{
			Name: c.Identity, Annotations: annotations, Digest: map[string]string{c.Digest.Algorithm().String(): c.Digest.Encoded()},
		}},
	})
	if err != nil {
		return nil, fmt.Errorf("encode statement: %w", err)
	}
	return body, nil
}

// EncodeBundle writes the bundle of a statement, its signature and the key that made it.
func EncodeBundle(body, sig []byte, key *PublicKey) ([]byte, error) {
	type (
		publicKey struct {
			Hint string `json:"hint"`
		}
		material struct {
			PublicKey publicKey `json:"publicKey"`
		}
		signature struct {
			Sig []byte `json:"sig"`
		}
		envelope struct {
			Payload     []byte      `json:"payload"`
			PayloadType string      `json:"payloadType"`
			Signatures  []signature `json:"signatures"`
		}
	)
	raw, err := json.Marshal(struct {
		MediaType string   `json:"mediaType"`
		Material  material `json:"verificationMaterial"`
		Envelope  envelope `json:"dsseEnvelope"`
	}{MediaTypeBundle, material{publicKey{key.Hint()}}, envelope{body, statementMedia, []signature{{sig}}}})
	if err != nil {
		return nil, fmt.Errorf("encode bundle: %w", err)
	}
	return raw, nil
}
