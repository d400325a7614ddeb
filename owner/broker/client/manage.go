package client

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"

	"github.com/coffer-project/coffer/proto/kbs"
)

// resourcePolicyID is what the one resource policy is called.
const resourcePolicyID = "resource-policy"

// SetResourcePolicy replaces the resource policy. One that does not compile is InvalidArgument.
func (c *Client) SetResourcePolicy(ctx context.Context, text []byte) error {
	return c.setPolicy(ctx, kbs.PathResourcePolicy, kbs.SetPolicy{}, text)
}

// SetAttestationPolicy creates or replaces an attestation policy, for example default_cpu. One that does not compile is InvalidArgument.
func (c *Client) SetAttestationPolicy(ctx context.Context, id string, text []byte) error {
	return c.setPolicy(ctx, kbs.PathAttestationPolicy, kbs.SetPolicy{Type: "rego", ID: id}, text)
}

func (c *Client) setPolicy(ctx context.Context, path string, request kbs.SetPolicy, text []byte) error {
	request.Policy = base64.RawURLEncoding.EncodeToString(text)
	body, err := json.Marshal(request)
	if err != nil {
		return fmt.Errorf("encode policy: %w", err)
	}
	if _, err := c.do(ctx, http.MethodPost, path, body); err != nil {
		return fmt.Errorf("set policy: %w", err)
	}
	return nil
}

// ResourcePolicy returns the resource policy that holds (coffer-kbs only).
func (c *Client) ResourcePolicy(ctx context.Context) (*kbs.PolicyText, error) {
	return c.policy(ctx, kbs.PathResourcePolicy+"/"+resourcePolicyID)
}

// AttestationPolicy returns an attestation policy (coffer-kbs only). NotFound where there is none.
func (c *Client) AttestationPolicy(ctx context.Context, id string) (*kbs.PolicyText, error) {
	return c.policy(ctx, kbs.PathAttestationPolicy+"/"+url.PathEscape(id))
}

func (c *Client) policy(ctx context.Context, path string) (*kbs.PolicyText, error) {
	var text kbs.PolicyText
	return &text, c.get(ctx, "read policy", path, kbs.MaxPolicyRequest*2, &text)
}

// AttestationPolicies returns the ids of the attestation policies that were handed in (coffer-kbs only).
func (c *Client) AttestationPolicies(ctx context.Context) (ids []string, err error) {
	err = c.get(ctx, "list policies", kbs.PathAttestationPolicy, kbs.MaxList, &ids)
	return ids, err
}

// ResetResourcePolicy goes back to the built-in resource policy (coffer-kbs only). NotFound where it holds already.
func (c *Client) ResetResourcePolicy(ctx context.Context) error {
	return c.remove(ctx, "reset policy", kbs.PathResourcePolicy)
}

// DeleteAttestationPolicy removes an attestation policy (coffer-kbs only).
func (c *Client) DeleteAttestationPolicy(ctx context.Context, id string) error {
	return c.remove(ctx, "delete policy", kbs.PathAttestationPolicy+"/"+url.PathEscape(id))
}

// RegisterReferences hands reference values in: a message to Trustee's reference value provider.
func (c *Client) RegisterReferences(ctx context.Context, message []byte) error {
	if _, err := c.do(ctx, http.MethodPost, kbs.PathReferenceValue, message); err != nil {
		return fmt.Errorf("register reference values: %w", err)
	}
	return nil
}

// Reference returns one reference value, nil where there is none.
func (c *Client) Reference(ctx context.Context, name string) (value any, err error) {
	err = c.get(ctx, "read reference value", kbs.PathReferenceValue+"/"+url.PathEscape(name), kbs.MaxReferences, &value)
	return value, err
}

// References returns all reference values (coffer-kbs only).
func (c *Client) References(ctx context.Context) ([]kbs.ReferenceValue, error) {
	var list kbs.ReferenceList
	err := c.get(ctx, "list reference values", kbs.PathReferenceValue, kbs.MaxList, &list)
	return list.Values, err
}

// DeleteReference removes a reference value (coffer-kbs only). NotFound where there is none.
func (c *Client) DeleteReference(ctx context.Context, name string) error {
	return c.remove(ctx, "delete reference value", kbs.PathReferenceValue+"/"+url.PathEscape(name))
}

// Status returns what the broker accepts and holds (coffer-kbs only).
func (c *Client) Status(ctx context.Context) (*kbs.Status, error) {
	var status kbs.Status
	return &status, c.get(ctx, "read status", kbs.PathStatus, kbs.MaxList, &status)
}

func (c *Client) get(ctx context.Context, what, path string, limit int, into any) error {
	body, err := c.do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if err := kbs.Decode(body, limit, into); err != nil {
		return fmt.Errorf("%s: key broker %s: %w", what, c.base, err)
	}
	return nil
}

func (c *Client) remove(ctx context.Context, what, path string) error {
	if _, err := c.do(ctx, http.MethodDelete, path, nil); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}
