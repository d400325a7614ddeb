package imagepolicy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/coffer-project/coffer/proto/sigstore"
)

// Image is what a policy decides about. The digests are what was fetched; nobody's word is taken for them.
type Image struct {
	// Reference is the name by which the image was asked for.
	Reference string
	// Manifest is the manifest that will run, Index the index that it was chosen from; empty where there was none.
	Manifest, Index digest.Digest
	// FindIndex, where Index is empty, looks for an index by which Manifest may be signed, and returns an empty digest
	// when there is none. It is called only when signatures are asked for. nil: there is none.
	FindIndex func(context.Context) (digest.Digest, error)
	// Lookaside is where OpenPGP signatures are looked for. nil: nowhere, so that no signedBy can be met.
	Lookaside *Lookaside
}

// Keys returns the text of a public key by its name at the key broker (kbs:///repository/type/tag).
type Keys func(ctx context.Context, uri string) ([]byte, error)

// Verdict says why an image may run.
type Verdict struct {
	// Scope is the part of the policy that decided: a scope of docker's, docker for the transport's own requirements, or
	// default. Empty: there is no policy.
	Scope string
	// Accepted has one entry for each requirement of the scope.
	Accepted []Acceptance
}

// Acceptance is a requirement that was met.
type Acceptance struct {
	// Rule is the requirement's type: sigstoreSigned, signedBy or insecureAcceptAnything. The last has nothing else.
	Rule string
	// KeyID is the SHA-256 of the key that made the signature, or its OpenPGP fingerprint; KeyURI its name at the key
	// broker, if it has one.
	KeyID, KeyURI string
	// Digest is what was signed, Identity the name that the signature gives it, if any, Form how it is stored.
	Digest         digest.Digest
	Identity, Form string
}

// Signed tells whether a signature was demanded, and found right.
func (v *Verdict) Signed() bool {
	for _, a := range v.Accepted {
		if a.Rule == sigstoreSigned || a.Rule == signedBy {
			return true
		}
	}
	return false
}

// Check decides whether an image may run. PermissionDenied: it may not; the error says what is missing. NotImplemented:
// the policy demands what cannot be checked here. Errors of the registry and of the key broker keep their class.
func (p *Policy) Check(ctx context.Context, img Image, repo Repository, keys Keys) (*Verdict, error) {
	image, err := parseImage(img.Reference)
	if err != nil {
		return nil, err
	}
	requirements, scope := p.find(image)
	c := &check{image: image, img: img, keys: keys, finder: newFinder(repo), aside: map[digest.Digest][]stored{}}
	verdict := &Verdict{Scope: scope}
	for _, r := range requirements {
		accepted, err := c.meet(ctx, &r)
		if err != nil {
			return nil, fmt.Errorf("image security policy, scope %s: %w", scope, err)
		}
		verdict.Accepted = append(verdict.Accepted, accepted)
	}
	return verdict, nil
}

// check is one image on its way through the requirements.
type check struct {
	image   name
	img     Image
	keys    Keys
	finder  *finder
	aside   map[digest.Digest][]stored // what was looked at in the lookaside
	digests []digest.Digest            // valid once looked is true
	looked  bool
	absent  error // why the index could not be looked for
}

func (c *check) meet(ctx context.Context, r *requirement) (Acceptance, error) {
	switch {
	case r.unsupported != "":
		return Acceptance{}, fmt.Errorf("%s: %w", r.unsupported, errdefs.ErrNotImplemented)
	case r.kind == acceptAnything:
		return Acceptance{Rule: r.kind}, nil
	case r.kind == sigstoreSigned:
		return c.signed(ctx, r)
	case r.kind == signedBy:
		return c.signedBy(ctx, r)
	default:
		return Acceptance{}, fmt.Errorf("it rejects image %s: %w", c.image, errdefs.ErrPermissionDenied)
	}
}

// signed looks for one signature that meets a requirement.
func (c *check) signed(ctx context.Context, r *requirement) (Acceptance, error) {
	keys, uris, err := c.load(ctx, r)
	if err != nil {
		return Acceptance{}, err
	}
	c.stands(ctx)
	var faults []error
	if c.absent != nil {
		faults = append(faults, c.absent)
	}
	for _, d := range c.digests {
		for s, err := range c.finder.signatures(ctx, d) {
			if err != nil {
				faults = append(faults, err)
				continue
			}
			accepted, err := c.judge(s, keys, r)
			if err == nil {
				accepted.KeyURI = uris[accepted.KeyID]
				return accepted, nil
			}
			faults = append(faults, fmt.Errorf("signature by %s: %w", s.Form, err))
		}
	}
	names := make([]string, 0, len(keys))
	for _, key := range keys {
		names = append(names, strings.TrimSpace(uris[key.ID()]+" "+key.ID()))
	}
	return Acceptance{}, c.refuse(names, "sign it with cosign or cofferctl image sign", faults)
}

// stands finds the digests whose signature counts. The index comes first: it is what people sign.
func (c *check) stands(ctx context.Context) {
	if c.looked {
		return
	}
	c.looked = true
	index := c.img.Index
	if index == "" && c.img.FindIndex != nil {
		var err error
		if index, err = c.img.FindIndex(ctx); err != nil && !isAbsent(err) {
			c.absent = fmt.Errorf("look for the index of %s: %w", c.image, err)
		}
	}
	if index != "" && index != c.img.Manifest {
		c.digests = append(c.digests, index)
	}
	c.digests = append(c.digests, c.img.Manifest)
}

// judge checks one signature.
func (c *check) judge(s *sigstore.Signature, keys []*sigstore.PublicKey, r *requirement) (Acceptance, error) {
	key, claims, err := s.Verify(keys)
	if err != nil {
		return Acceptance{}, err
	}
	err = fmt.Errorf("it is for another image (%s): %w", claims[0].Digest, errdefs.ErrPermissionDenied)
	for _, claim := range claims {
		if !slices.Contains(c.digests, claim.Digest) {
			continue
		}
		if err = r.identity.accept(c.image, claim.Identity); err == nil {
			return Acceptance{Rule: r.kind, KeyID: key.ID(), Digest: claim.Digest, Identity: claim.Identity, Form: s.Form}, nil
		}
	}
	return Acceptance{}, err
}

// load gets the keys of a requirement; uris has the names, by id, of those that have one.
func (c *check) load(ctx context.Context, r *requirement) (keys []*sigstore.PublicKey, uris map[string]string, err error) {
	uris = map[string]string{}
	for _, source := range r.keys {
		key := source.key
		if key == nil {
			text, err := c.fetchKey(ctx, source.uri)
			if err != nil {
				return nil, nil, err
			}
			if key, err = sigstore.ParsePublicKey(text); err != nil {
				return nil, nil, fmt.Errorf("key %s: %w", source.uri, err)
			}
			uris[key.ID()] = source.uri
		}
		keys = append(keys, key)
	}
	return keys, uris, nil
}

func (c *check) fetchKey(ctx context.Context, uri string) ([]byte, error) {
	if c.keys == nil {
		return nil, fmt.Errorf("key %s: there is no key broker to ask: %w", uri, errdefs.ErrFailedPrecondition)
	}
	raw, err := c.keys(ctx, uri)
	if err != nil {
		return nil, fmt.Errorf("get key %s: %w", uri, err)
	}
	return raw, nil
}

// maxFaults bounds the reasons that an error gives.
const maxFaults = 4

// refuse explains why no signature was accepted. Where a part of the signatures could not be had, the class is that of
// the cause: another attempt may go well.
func (c *check) refuse(keys []string, cure string, faults []error) error {
	var class error = errdefs.ErrPermissionDenied
	var reasons []string
	for _, fault := range faults {
		if passing(fault) {
			class = errdefs.Resolve(fault)
		}
		if len(reasons) < maxFaults {
			reasons = append(reasons, strings.TrimSuffix(fault.Error(), ": "+errdefs.ErrPermissionDenied.Error()))
		}
	}
	if more := len(faults) - len(reasons); more > 0 {
		reasons = append(reasons, fmt.Sprintf("and %d more reasons", more))
	}
	why := "it has no signature; " + cure
	if len(reasons) > 0 {
		why = strings.Join(reasons, "; ")
	}
	return fmt.Errorf("image %s (%s) has no signature that counts; wanted is one by key %s: %s: %w",
		c.image, c.img.Manifest, strings.Join(keys, " or "), why, class)
}

// isAbsent tells that something is not there from not knowing: of several places one may have said so and another nothing.
func isAbsent(err error) bool { return errdefs.IsNotFound(err) && !passing(err) }

// passing tells faults of the moment from what is as it is.
func passing(err error) bool {
	return errdefs.IsUnavailable(err) || errdefs.IsDeadlineExceeded(err) || errdefs.IsCanceled(err) || errdefs.IsUnauthorized(err) ||
		errdefs.IsResourceExhausted(err) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}
