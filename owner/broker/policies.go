package broker

import (
	"context"
	"encoding/base64"
	"net/http"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/owner/broker/admin"
	"github.com/coffer-project/coffer/owner/broker/audit"
	"github.com/coffer-project/coffer/owner/broker/ear"
	"github.com/coffer-project/coffer/owner/broker/policy"
	"github.com/coffer-project/coffer/proto/kbs"
)

// Policy decides who gets which resource.
type Policy interface {
	// Allow decides on the claims of a token that the broker signed and that is valid. reason explains a refusal to the guest's admin
	// and goes to the audit log either way. An error refuses too.
	Allow(ctx context.Context, claims *ear.Claims, resource kbs.ResourceURI) (allowed bool, reason string, err error)
}

// Appraisal has the owner's policy judge what a verifier found genuine.
type Appraisal interface {
	// Appraise may change the vector, status, policy id and extensions of a part of class (cpu, gpu ...). An error refuses the guest.
	Appraise(ctx context.Context, class string, submod *ear.Submod) error
}

// PolicyAdmin changes the policies. *policy.Policies implements it, as it does Policy and Appraisal.
type PolicyAdmin interface {
	Resource(ctx context.Context) (text, id string, err error)
	SetResource(ctx context.Context, text string) error
	ResetResource(ctx context.Context) error
	Attestation(ctx context.Context, id string) (text, shown string, err error)
	SetAttestation(ctx context.Context, id, text string) error
	DeleteAttestation(ctx context.Context, id string) error
	Attestations(ctx context.Context) ([]string, error)
}

// setPolicy serves POST of a resource or attestation policy.
func (b *Broker) setPolicy(w http.ResponseWriter, r *http.Request) error {
	return b.asAdmin(r, admin.WritePolicies, func(rec *audit.Record) error {
		body, err := readBody(w, r, kbs.MaxPolicyRequest)
		if err != nil {
			return err
		}
		var request kbs.SetPolicy
		if err := kbs.Decode(body, kbs.MaxPolicyRequest, &request); err != nil {
			return adminError("", kbs.KindParsePolicy, err)
		}
		text, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(request.Policy, "="))
		if err != nil || request.Type != "" && request.Type != "rego" {
			return &fault{status: http.StatusBadRequest, kind: kbs.KindParsePolicy, detail: "policy is not base64url, or its type is not rego"}
		}
		if r.URL.Path == kbs.PathResourcePolicy {
			rec.Object, err = policy.ResourceID, b.Policies.SetResource(r.Context(), string(text))
		} else {
			rec.Object, err = clipObject(request.ID), b.Policies.SetAttestation(r.Context(), request.ID, string(text))
		}
		rec.Object += " " + policy.Digest(string(text))
		if err != nil {
			return adminError("the policy could not be stored", kbs.KindParsePolicy, err)
		}
		return nil
	})
}

// listPolicies serves GET of the ids of the resource policy, as in Trustee, or of the attestation policies that were handed in.
func (b *Broker) listPolicies(w http.ResponseWriter, r *http.Request) error {
	ids := []string{policy.ResourceID}
	err := b.asAdmin(r, admin.ReadPolicies, func(rec *audit.Record) (err error) {
		rec.Action, rec.Object = actionList, "policies"
		if r.URL.Path == kbs.PathAttestationPolicy {
			ids, err = b.Policies.Attestations(r.Context())
		}
		if err != nil {
			return broken("the policies could not be listed", err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return sendJSON(w, ids)
}

// getPolicy serves GET of one policy's text.
func (b *Broker) getPolicy(w http.ResponseWriter, r *http.Request) error {
	var answer kbs.PolicyText
	err := b.asAdmin(r, admin.ReadPolicies, func(rec *audit.Record) (err error) {
		id := r.PathValue("id")
		rec.Object = clipObject(id)
		var shown string
		switch {
		case strings.HasPrefix(r.URL.Path, kbs.PathAttestationPolicy):
			answer.Text, shown, err = b.Policies.Attestation(r.Context(), id)
		case id == policy.ResourceID:
			answer.Text, shown, err = b.Policies.Resource(r.Context())
		default:
			err = errdefs.ErrNotFound
		}
		if errdefs.IsNotFound(err) {
			return missing(kbs.KindNotFound, "no such policy")
		}
		if err != nil {
			return adminError("the policy could not be read", kbs.KindParsePolicy, err)
		}
		answer.ID, answer.BuiltIn = strings.CutSuffix(shown, policy.BuiltIn)
		answer.Digest = policy.Digest(answer.Text)
		return nil
	})
	if err != nil {
		return err
	}
	return sendJSON(w, answer)
}

// deletePolicy serves DELETE of a policy: the built-in one holds again.
func (b *Broker) deletePolicy(_ http.ResponseWriter, r *http.Request) error {
	return b.asAdmin(r, admin.WritePolicies, func(rec *audit.Record) (err error) {
		if strings.HasPrefix(r.URL.Path, kbs.PathAttestationPolicy) {
			rec.Object = clipObject(r.PathValue("id"))
			err = b.Policies.DeleteAttestation(r.Context(), r.PathValue("id"))
		} else {
			rec.Object = policy.ResourceID
			err = b.Policies.ResetResource(r.Context())
		}
		if errdefs.IsNotFound(err) {
			return missing(kbs.KindNotFound, "no such policy was handed in")
		}
		if err != nil {
			return adminError("the policy could not be deleted", kbs.KindParsePolicy, err)
		}
		return nil
	})
}

// clipObject shortens what an admin names for the record.
func clipObject(name string) string { return name[:min(len(name), 128)] }

// policyStatus fills in what holds now.
func (b *Broker) policyStatus(ctx context.Context, answer *kbs.Status) (err error) {
	if _, answer.ResourcePolicy, err = b.Policies.Resource(ctx); err != nil {
		return broken("the resource policy could not be read", err)
	}
	if answer.AttestationPolicies, err = b.Policies.Attestations(ctx); err != nil {
		return broken("the attestation policies could not be listed", err)
	}
	values, err := b.References.List(ctx)
	if err != nil {
		return broken("the reference values could not be listed", err)
	}
	answer.ReferenceValues = len(values)
	return nil
}
