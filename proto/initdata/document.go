package initdata

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"

	"github.com/coffer-project/coffer/proto/lazyregexp"
)

// Version is the one version of the document that exists.
const Version = "0.1.0"

// MaxSize bounds the text in bytes, and also its gzip form.
const MaxSize = 1 << 20

// The digest algorithms of the document.
const (
	SHA256 = "sha256"
	SHA384 = "sha384"
	SHA512 = "sha512"
)

// The entries of Document.Data that have a meaning.
const (
	KeyAA     = "aa.toml"
	KeyCDH    = "cdh.toml"
	KeyPolicy = "policy.rego"
	// KeyAuth is a containers-auth.json for registries. Initdata is no secret: passwords belong into a key broker.
	KeyAuth = "auth.json"
)

var keyPattern = lazyregexp.New(`^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}$`)

// maxEntries bounds Document.Data.
const maxEntries = 64

// Document is the parsed form.
type Document struct {
	Version   string            `toml:"version"`
	Algorithm string            `toml:"algorithm"`
	Data      map[string]string `toml:"data"`
}

// Parse reads the text strictly. Faults are InvalidArgument. Algorithm is returned in its short form (sha384, not sha-384).
func Parse(raw []byte) (*Document, error) {
	if len(raw) > MaxSize {
		return nil, fmt.Errorf("initdata of %d bytes is larger than the limit of %d: %w", len(raw), MaxSize, errdefs.ErrInvalidArgument)
	}
	var doc Document
	if err := decodeTOML(raw, &doc); err != nil {
		return nil, fmt.Errorf("initdata: %w", err)
	}
	if algorithm, ok := normalize(doc.Algorithm); ok {
		doc.Algorithm = algorithm
	}
	if err := doc.Validate(); err != nil {
		return nil, err
	}
	return &doc, nil
}

// Validate returns all faults at once, as InvalidArgument.
func (d *Document) Validate() error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if d.Version != Version {
		fault("version %q is not %s", clip(d.Version), Version)
	}
	if _, ok := normalize(d.Algorithm); !ok {
		fault("algorithm %q is none of sha256, sha384, sha512", clip(d.Algorithm))
	}
	if len(d.Data) > maxEntries {
		fault("%d entries in [data], at most %d are allowed", len(d.Data), maxEntries)
	}
	for key := range d.Data {
		if !keyPattern.MatchString(key) {
			fault("entry %q of [data] is not a plain file name", clip(key))
		}
	}
	if len(faults) == 0 {
		return nil
	}
	return fmt.Errorf("initdata: %w: %w", errdefs.ErrInvalidArgument, errors.Join(faults...))
}

// Encode returns a text that Parse reads. It is the same for the same document, so that its digest can be known beforehand.
func (d *Document) Encode() ([]byte, error) {
	if err := d.Validate(); err != nil {
		return nil, err
	}
	for key, text := range d.Data {
		if !utf8.ValidString(text) {
			return nil, fmt.Errorf("initdata entry %s is not UTF-8: %w", key, errdefs.ErrInvalidArgument)
		}
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, "version = %q\nalgorithm = %q\n\n[data]\n", d.Version, d.Algorithm)
	for _, key := range slices.Sorted(maps.Keys(d.Data)) {
		if err := writeEntry(&out, key, d.Data[key]); err != nil {
			return nil, err
		}
	}
	if out.Len() > MaxSize {
		return nil, fmt.Errorf("initdata of %d bytes is larger than the limit of %d: %w", out.Len(), MaxSize, errdefs.ErrInvalidArgument)
	}
	return out.Bytes(), nil
}

// writeEntry keeps the lines of a text as they are where TOML has a form for that, so that people can read the document.
func writeEntry(out *bytes.Buffer, key, text string) error {
	special := func(r rune) bool { return r < 0x20 && r != '\n' && r != '\t' || r == 0x7f }
	if !strings.Contains(text, "'''") && !strings.HasSuffix(text, "'") && strings.IndexFunc(text, special) < 0 {
		fmt.Fprintf(out, "%q = '''\n%s'''\n", key, text)
		return nil
	}
	line, err := toml.Marshal(map[string]string{key: text})
	if err != nil {
		return fmt.Errorf("encode initdata entry %s: %w", key, err)
	}
	out.Write(line)
	return nil
}

// Digest returns the digest of the text under the algorithm that the text itself names. The text is parsed strictly first.
func Digest(raw []byte) (algorithm string, sum []byte, err error) {
	doc, err := Parse(raw)
	if err != nil {
		return "", nil, err
	}
	switch doc.Algorithm {
	case SHA256:
		s := sha256.Sum256(raw)
		sum = s[:]
	case SHA384:
		s := sha512.Sum384(raw)
		sum = s[:]
	case SHA512:
		s := sha512.Sum512(raw)
		sum = s[:]
	}
	return doc.Algorithm, sum, nil
}

// Lengths in bytes of the fields that bind a digest to a TEE.
const (
	SNPHostData   = 32
	TDXMRConfigID = 48
)

// Fit cuts or zero-pads a digest to the length of a TEE's field.
func Fit(sum []byte, size int) []byte {
	field := make([]byte, size)
	copy(field, sum)
	return field
}

// normalize maps the spellings in use (sha384, sha-384, SHA-384) to the short form.
func normalize(algorithm string) (string, bool) {
	short := strings.Replace(strings.ToLower(algorithm), "-", "", 1)
	switch short {
	case SHA256, SHA384, SHA512:
		return short, true
	}
	return "", false
}

// clip keeps foreign text in error messages short; %q makes it printable.
func clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "..."
	}
	return s
}

// decodeTOML decodes over into, with unknown keys refused and the place of a fault named.
func decodeTOML(raw []byte, into any) error {
	dec := toml.NewDecoder(bytes.NewReader(raw)).DisallowUnknownFields()
	err := dec.Decode(into)
	if err == nil {
		return nil
	}
	if missing, ok := errors.AsType[*toml.StrictMissingError](err); ok {
		var keys []string
		for _, e := range missing.Errors {
			row, _ := e.Position()
			keys = append(keys, fmt.Sprintf("%q (line %d)", clip(strings.Join(e.Key(), ".")), row))
			if len(keys) == 8 {
				break
			}
		}
		return fmt.Errorf("unknown keys %s: %w", strings.Join(keys, ", "), errdefs.ErrInvalidArgument)
	}
	if bad, ok := errors.AsType[*toml.DecodeError](err); ok {
		row, column := bad.Position()
		return fmt.Errorf("line %d column %d: %.200q: %w", row, column, bad.Error(), errdefs.ErrInvalidArgument)
	}
	return fmt.Errorf("%.200q: %w", err.Error(), errdefs.ErrInvalidArgument)
}
