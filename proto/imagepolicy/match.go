package imagepolicy

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/strictjson"
)

// The rules of signedIdentity.
const (
	matchClaimed           = "" // no rule is given
	matchExact             = "matchExact"
	matchRepoDigestOrExact = "matchRepoDigestOrExact"
	matchRepository        = "matchRepository"
	exactReference         = "exactReference"
	exactRepository        = "exactRepository"
	remapIdentity          = "remapIdentity"
)

// match is which name a signature must give an image.
type match struct {
	rule                 string
	want                 name   // of exactReference and exactRepository
	prefix, signedPrefix string // of remapIdentity
}

// parseMatch reads a signedIdentity; nil is a missing one.
func parseMatch(raw json.RawMessage) (match, error) {
	if raw == nil {
		return match{}, nil
	}
	var m match
	var reference, repository string
	if err := strictjson.Open(raw, map[string]any{"type": &m.rule}); err != nil {
		return m, err
	}
	fields := map[string]any{"type": &m.rule}
	switch m.rule {
	case matchExact, matchRepoDigestOrExact, matchRepository:
	case exactReference:
		fields["dockerReference"] = &reference
	case exactRepository:
		fields["dockerRepository"] = &repository
	case remapIdentity:
		fields["prefix"], fields["signedPrefix"] = &m.prefix, &m.signedPrefix
	default:
		return m, fmt.Errorf("unknown type %.64q of a signed identity: %w", m.rule, errdefs.ErrInvalidArgument)
	}
	if err := strictjson.Object(raw, fields); err != nil {
		return m, err
	}
	return m, m.complete(reference, repository)
}

// complete reads the names that a rule comes with.
func (m *match) complete(reference, repository string) (err error) {
	switch m.rule {
	case exactReference:
		if m.want, err = parseName(reference); err == nil && m.want.bare() {
			err = fmt.Errorf("dockerReference %.200q has neither tag nor digest: %w", reference, errdefs.ErrInvalidArgument)
		}
	case exactRepository:
		if m.want, err = parseName(repository); err == nil && !m.want.bare() {
			err = fmt.Errorf("dockerRepository %.200q has a tag or a digest: %w", repository, errdefs.ErrInvalidArgument)
		}
	case remapIdentity:
		if m.prefix, err = parsePrefix("prefix", m.prefix); err == nil {
			m.signedPrefix, err = parsePrefix("signedPrefix", m.signedPrefix)
		}
	}
	return err
}

// parsePrefix reads a host, a namespace or a repository.
func parsePrefix(what, text string) (string, error) {
	prefix, err := parseScope(text)
	_, path, _ := strings.Cut(prefix, "/")
	if err != nil || prefix == "" || prefix[0] == '*' || strings.ContainsAny(path, ":@") {
		return "", fmt.Errorf("%s %.200q is no host, namespace or repository: %w", what, text, errdefs.ErrInvalidArgument)
	}
	return prefix, nil
}

// accept compares the name that a signature gives an image with the image's. PermissionDenied: it is another one.
func (m *match) accept(image name, claimed string) error {
	if claimed == "" {
		if m.rule == matchClaimed {
			return nil
		}
		return fmt.Errorf("it names no image, as cosign's bundles do, and the policy wants %s; sign with cofferctl image sign, or leave signedIdentity out: %w",
			m.rule, errdefs.ErrPermissionDenied)
	}
	signed, err := parseName(claimed)
	if err != nil {
		return fmt.Errorf("it is for a name that cannot be read: %w: %w", err, errdefs.ErrPermissionDenied)
	}
	if !m.matches(image, signed) {
		rule := m.rule
		if rule == matchClaimed {
			rule = "no other name"
		}
		return fmt.Errorf("it is for %.200s, and the policy wants %s for %s: %w", signed, rule, image, errdefs.ErrPermissionDenied)
	}
	return nil
}

func (m *match) matches(image, signed name) bool {
	switch m.rule {
	case matchClaimed:
		return (signed.bare() && signed.repository == image.repository) || repoDigestOrExact(image, signed)
	case matchExact:
		return !signed.bare() && signed == image
	case matchRepoDigestOrExact:
		return repoDigestOrExact(image, signed)
	case matchRepository:
		return signed.repository == image.repository
	case exactReference:
		return signed == m.want
	case exactRepository:
		return signed.repository == m.want.repository
	case remapIdentity:
		return repoDigestOrExact(m.remap(image), signed)
	default:
		return false
	}
}

// repoDigestOrExact: an image with a digest, which the signature covers, needs the repository alone.
func repoDigestOrExact(image, signed name) bool {
	switch {
	case signed.bare():
		return false
	case image.digest != "":
		return signed.repository == image.repository
	default:
		return signed == image
	}
}

// remap replaces the prefix of a name that has it.
func (m *match) remap(image name) name {
	rest, ok := strings.CutPrefix(image.repository, m.prefix)
	if ok && (rest == "" || rest[0] == '/') {
		image.repository = m.signedPrefix + rest
	}
	return image
}
