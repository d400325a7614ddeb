package imagepolicy

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/coffer-project/coffer/proto/sigstore"
	"github.com/coffer-project/coffer/proto/simplesigning"
	"github.com/coffer-project/coffer/proto/strictjson"
)

// keyTypeGPG is the one type of keys of a signedBy that those who read policies know how to use.
const keyTypeGPG = "GPGKeys"

// parseOpenPGP reads a signedBy.
func (r *requirement) parseOpenPGP(raw json.RawMessage) error {
	var keys keyFields
	var kind string
	var identity json.RawMessage
	fields := keys.into(map[string]any{"type": &r.kind, "keyType": &kind, "signedIdentity": &identity})
	delete(fields, "keyDatas")
	err := strictjson.Object(raw, fields)
	switch {
	case err != nil:
		return err
	case kind != keyTypeGPG:
		return fmt.Errorf("keyType %.64q of a signedBy, want %q: %w", kind, keyTypeGPG, errdefs.ErrInvalidArgument)
	}
	if r.identity, err = parseMatch(identity); err != nil {
		return fmt.Errorf("signedIdentity: %w", err)
	}
	if r.identity.rule == matchClaimed {
		r.identity.rule = matchRepoDigestOrExact // as specified: those who sign so always give a whole name
	}
	r.keys, err = keys.sources(parseRingData)
	return err
}

// parseRingData reads an OpenPGP keyring in base64.
func parseRingData(data string) (keySource, error) {
	raw, err := decodeKey(data)
	if err != nil {
		return keySource{}, err
	}
	ring, err := simplesigning.ParseKeyring(raw)
	return keySource{ring: ring}, err
}

// stored is a message of the lookaside, or why one could not be had.
type stored struct {
	message []byte
	err     error
}

// signedBy looks for one OpenPGP signature that meets a requirement.
func (c *check) signedBy(ctx context.Context, r *requirement) (Acceptance, error) {
	rings, uris, err := c.loadRings(ctx, r)
	if err != nil {
		return Acceptance{}, err
	}
	place, err := c.place(ctx)
	if err != nil {
		return Acceptance{}, err
	}
	c.stands(ctx)
	var faults []error
	if c.absent != nil {
		faults = append(faults, c.absent)
	}
	for _, d := range c.digests {
		for _, s := range c.lookAside(ctx, place, d) {
			if s.err != nil {
				faults = append(faults, s.err)
				continue
			}
			accepted, err := c.judgeMessage(s.message, rings, r)
			if err == nil {
				accepted.KeyURI = uris[accepted.ring]
				return accepted.Acceptance, nil
			}
			faults = append(faults, fmt.Errorf("signature by OpenPGP: %w", err))
		}
	}
	names := make([]string, 0, len(rings))
	for _, ring := range rings {
		names = append(names, strings.TrimSpace(uris[ring]+" "+ring.String()))
	}
	return Acceptance{}, c.refuse(names, "sign it with skopeo copy --sign-by or gpg --sign, and store that below "+place, faults)
}

// loadRings gets the keyrings of a requirement; uris has the names of those that have one.
func (c *check) loadRings(ctx context.Context, r *requirement) (rings []*simplesigning.Keyring, uris map[*simplesigning.Keyring]string, err error) {
	uris = map[*simplesigning.Keyring]string{}
	for _, source := range r.keys {
		ring := source.ring
		if ring == nil {
			raw, err := c.fetchKey(ctx, source.uri)
			if err != nil {
				return nil, nil, err
			}
			if ring, err = simplesigning.ParseKeyring(raw); err != nil {
				return nil, nil, fmt.Errorf("key %s: %w", source.uri, err)
			}
			uris[ring] = source.uri
		}
		rings = append(rings, ring)
	}
	return rings, uris, nil
}

// place is where the image's signatures are.
func (c *check) place(ctx context.Context) (string, error) {
	if c.img.Lookaside == nil {
		return "", fmt.Errorf("signedBy: nothing says where OpenPGP signatures are; write image.sigstore_config of the initdata's cdh.toml, like \"default-docker: {lookaside: https://HOST/PATH}\": %w",
			errdefs.ErrFailedPrecondition)
	}
	places, err := c.img.Lookaside.Places(ctx)
	if err != nil {
		return "", err
	}
	place := places.find(c.image)
	if place == "" {
		return "", fmt.Errorf("signedBy: image.sigstore_config names no lookaside for %s, and no default-docker: %w", c.image, errdefs.ErrFailedPrecondition)
	}
	return place, nil
}

// lookAside gets the signatures of a digest, which are counted from 1 without a gap.
func (c *check) lookAside(ctx context.Context, place string, d digest.Digest) []stored {
	list, done := c.aside[d]
	if done {
		return list
	}
	for n := 1; ; n++ {
		if n > maxSignatures {
			list = append(list, stored{err: fmt.Errorf("of the signatures of %s only %d were looked at: %w", d, maxSignatures, errdefs.ErrPermissionDenied)})
			break
		}
		raw, err := c.img.Lookaside.Get(ctx, signatureAddress(place, c.image, d, n), simplesigning.MaxMessage)
		if err != nil {
			if !isAbsent(err) {
				list = append(list, stored{err: fmt.Errorf("get signature %d of %s: %w", n, d, err)})
			}
			break
		}
		list = append(list, stored{message: raw})
	}
	c.aside[d] = list
	return list
}

// acceptance is one with the keyring that brought it.
type acceptance struct {
	Acceptance
	ring *simplesigning.Keyring
}

// judgeMessage checks one signature.
func (c *check) judgeMessage(raw []byte, rings []*simplesigning.Keyring, r *requirement) (acceptance, error) {
	s, err := simplesigning.Verify(raw, rings)
	if err != nil {
		return acceptance{}, err
	}
	if !slices.Contains(c.digests, s.Claim.Digest) {
		return acceptance{}, fmt.Errorf("it is for another image (%s): %w", s.Claim.Digest, errdefs.ErrPermissionDenied)
	}
	if err := r.identity.accept(c.image, s.Claim.Identity); err != nil {
		return acceptance{}, err
	}
	return acceptance{ring: s.Ring, Acceptance: Acceptance{
		Rule: r.kind, KeyID: s.Fingerprint, Digest: s.Claim.Digest, Identity: s.Claim.Identity, Form: sigstore.FormPayload,
	}}, nil
}
