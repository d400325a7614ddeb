package policy

import (
	"context"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/owner/broker/store"
)

const (
	resourceName      = store.KindPolicy + "/resource/" + ResourceID
	attestationFolder = store.KindPolicy + "/attestation"
)

func attestationName(id string) string { return attestationFolder + "/" + id }

// Resource returns the resource policy that holds; its id ends in BuiltIn where none was handed in.
func (p *Policies) Resource(ctx context.Context) (text, id string, err error) {
	return p.resourceText(ctx)
}

// SetResource replaces the resource policy. One that does not compile is InvalidArgument and changes nothing.
func (p *Policies) SetResource(ctx context.Context, text string) error {
	if _, err := p.compile(ResourceID, text, ruleAllow, ruleReason); err != nil {
		return err
	}
	return p.store.Put(ctx, resourceName, []byte(text))
}

// ResetResource goes back to the built-in resource policy. NotFound where it holds already.
func (p *Policies) ResetResource(ctx context.Context) error { return p.store.Delete(ctx, resourceName) }

// Attestation returns an attestation policy that was handed in, or the built-in one with BuiltIn in its id. Unknown ids are NotFound.
func (p *Policies) Attestation(ctx context.Context, id string) (text, shown string, err error) {
	if err := checkAttestationID(id); err != nil {
		return "", "", err
	}
	raw, err := p.store.Get(ctx, attestationName(id))
	if errdefs.IsNotFound(err) && strings.HasPrefix(id, DefaultID+"_") {
		return attestation, id + BuiltIn, nil
	}
	return string(raw), id, err
}

// SetAttestation creates or replaces an attestation policy. Only default_<class> are used. A text that does not compile is
// InvalidArgument and changes nothing.
func (p *Policies) SetAttestation(ctx context.Context, id, text string) error {
	if err := checkAttestationID(id); err != nil {
		return err
	}
	if _, err := p.compile(id, text, ruleTrustClaims, ruleExtensions); err != nil {
		return err
	}
	return p.store.Put(ctx, attestationName(id), []byte(text))
}

// DeleteAttestation removes an attestation policy, so that the built-in one holds again. NotFound where none was handed in.
func (p *Policies) DeleteAttestation(ctx context.Context, id string) error {
	if err := checkAttestationID(id); err != nil {
		return err
	}
	return p.store.Delete(ctx, attestationName(id))
}

// Attestations lists the ids of the attestation policies that were handed in.
func (p *Policies) Attestations(ctx context.Context) ([]string, error) {
	names, err := p.store.List(ctx, attestationFolder)
	if err != nil {
		return nil, err
	}
	for i, name := range names {
		names[i] = strings.TrimPrefix(name, attestationFolder+"/")
	}
	return names, nil
}

func checkAttestationID(id string) error {
	if !attestationID.MatchString(id) {
		return fmt.Errorf("attestation policy id is not of letters, digits, '_', '-' and '.', at most 64: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}
