// Package policy keeps and asks a broker's policies, which have the form of Trustee's (package policy, in Rego):
//
// The resource policy decides who gets what: rule allow; input is the token's claims, data is {plugin, resource-path, query}. Its rule
// reason, where it has one, is told to the guest and recorded.
//
// The attestation policies, one for each class of evidence (default_cpu, default_gpu ...), appraise what a verifier found genuine: rule
// trust_claims with the trustworthiness vector, and extensions; input is the annotated evidence, with the verifier's own vector as
// ear.trustworthiness-vector. query_reference_value reads reference values.
//
// Where no policy was handed in, a built-in one holds, which trusts only what is affirmed.
package policy

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/owner/appraise"
	"github.com/coffer-project/coffer/owner/broker/ear"
	"github.com/coffer-project/coffer/owner/broker/rego"
	"github.com/coffer-project/coffer/owner/broker/store"
	"github.com/coffer-project/coffer/owner/memo"
	"github.com/coffer-project/coffer/proto/kbs"
	"github.com/coffer-project/coffer/proto/lazyregexp"
)

// ResourceID is what the one resource policy is called, as in Trustee.
const ResourceID = "resource-policy"

// DefaultID is the attestation policy's name in tokens. Its text for a class of evidence is kept as default_<class>.
const DefaultID = "default"

// The built-in policies.
var (
	//go:embed affirming.rego
	affirming string
	//go:embed development.rego
	development string
	//go:embed attestation.rego
	attestation string
)

// BuiltIn ends the id of a built-in policy in reasons and lists.
const BuiltIn = " (built-in)"

// Rules that are asked for.
const (
	ruleAllow       = "allow"
	ruleReason      = "reason"
	ruleTrustClaims = "trust_claims"
	ruleExtensions  = "extensions"
)

// Limits on what is kept in memory: compiled policies, and claims in the form that policies read, which a guest's next keys need again.
const (
	maxCompiled = 64
	maxClaims   = 512
	maxClaim    = 16 << 10 // bytes
)

var attestationID = lazyregexp.New(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$`)

// References reads reference values.
type References interface {
	Reference(ctx context.Context, name string) (any, error)
}

// Policies implements the broker's policies. Calls may be concurrent.
type Policies struct {
	store       store.Store
	references  References
	allowSample bool

	// By the digests of what they were made from.
	compiled *memo.Map[[sha256.Size]byte, *rego.Policy]
	claims   *memo.Map[[sha256.Size]byte, *rego.Document]
}

// New returns the policies that s keeps. allowSample chooses the built-in resource policy that admits the sample TEE.
func New(s store.Store, references References, allowSample bool) *Policies {
	return &Policies{
		store: s, references: references, allowSample: allowSample,
		compiled: memo.New[[sha256.Size]byte, *rego.Policy](maxCompiled),
		claims:   memo.New[[sha256.Size]byte, *rego.Document](maxClaims),
	}
}

// Allow implements broker.Policy.
func (p *Policies) Allow(ctx context.Context, claims *ear.Claims, resource kbs.ResourceURI) (bool, string, error) {
	text, id, err := p.resourceText(ctx)
	if err != nil {
		return false, "", err
	}
	policy, err := p.compile(id, text, ruleAllow, ruleReason)
	if err != nil {
		return false, "", err
	}
	document, err := p.document(claims)
	if err != nil {
		return false, "", err
	}
	in := &rego.Input{Document: document, Reference: p.references.Reference, Data: map[string]any{
		"plugin":        "resource",
		"resource-path": []any{resource.Repository, resource.Type, resource.Tag},
		"query":         map[string]any{},
	}}
	value, _, err := policy.Eval(ctx, ruleAllow, in)
	if err != nil {
		return false, "", err
	}
	allowed := value == true // anything else is a refusal
	reason, ok, err := policy.Eval(ctx, ruleReason, in)
	if text, isText := reason.(string); err == nil && ok && isText && text != "" {
		return allowed, id + ": " + clip(text), nil
	}
	return allowed, map[bool]string{true: id + " allows it", false: id + " does not allow it"}[allowed], nil
}

// document returns claims as policies read them.
func (p *Policies) document(claims *ear.Claims) (*rego.Document, error) {
	raw, err := claims.JSON()
	if err != nil {
		return nil, err
	}
	if len(raw) > maxClaim {
		return rego.Parse(raw)
	}
	sum := sha256.Sum256(raw)
	if document, ok := p.claims.Get(sum); ok {
		return document, nil
	}
	document, err := rego.Parse(raw)
	if err == nil {
		p.claims.Put(sum, document)
	}
	return document, err
}

func (p *Policies) resourceText(ctx context.Context) (text, id string, err error) {
	raw, err := p.store.Get(ctx, resourceName)
	switch {
	case err == nil:
		return string(raw), ResourceID, nil
	case !errdefs.IsNotFound(err):
		return "", "", fmt.Errorf("read the resource policy: %w", err)
	case p.allowSample:
		return development, ResourceID + BuiltIn, nil
	default:
		return affirming, ResourceID + BuiltIn, nil
	}
}

// Appraise implements broker.Appraisal: it has the policy of a class of evidence judge what a verifier found.
func (p *Policies) Appraise(ctx context.Context, class string, submod *ear.Submod) error {
	id := DefaultID + "_" + class
	raw, err := p.store.Get(ctx, attestationName(id))
	if errdefs.IsNotFound(err) {
		return nil // the built-in policy would repeat the verifier's verdict
	}
	if err != nil {
		return fmt.Errorf("read the attestation policy %s: %w", id, err)
	}
	policy, err := p.compile(id, string(raw), ruleTrustClaims, ruleExtensions)
	if err != nil {
		return err
	}
	input := map[string]any{"ear.trustworthiness-vector": submod.Vector}
	for name, entry := range submod.Evidence {
		input[name] = entry
	}
	encoded, err := json.Marshal(input)
	if err != nil {
		return fmt.Errorf("encode evidence for the attestation policy %s: %w", id, err)
	}
	document, err := rego.Parse(encoded)
	if err != nil {
		return fmt.Errorf("attestation policy %s: %w", id, err)
	}
	in := &rego.Input{Document: document, Reference: p.references.Reference}
	vector, err := evalVector(ctx, policy, in)
	if err != nil {
		return fmt.Errorf("attestation policy %s: %w", id, err)
	}
	extensions, err := evalExtensions(ctx, policy, in)
	if err != nil {
		return fmt.Errorf("attestation policy %s: %w", id, err)
	}
	submod.Vector, submod.Status, submod.PolicyID, submod.Extensions = vector, vector.Status(), DefaultID, extensions
	return nil
}

func evalVector(ctx context.Context, policy *rego.Policy, in *rego.Input) (vector appraise.TrustVector, err error) {
	value, ok, err := policy.Eval(ctx, ruleTrustClaims, in)
	if err != nil || !ok {
		return vector, err // undefined: no claim is made
	}
	raw, err := json.Marshal(value)
	if err != nil {
		return vector, fmt.Errorf("encode %s: %w", ruleTrustClaims, err)
	}
	// int8 is the range of AR4SI, and a name that it does not have must not be lost.
	if err := kbs.DecodeStrict(raw, kbs.MaxTokenReply, &vector); err != nil {
		return appraise.TrustVector{}, fmt.Errorf("rule %s is no trustworthiness vector: %w: %w", ruleTrustClaims, err, errdefs.ErrInternal)
	}
	return vector, nil
}

// evalExtensions returns what a policy adds to the token, by name.
func evalExtensions(ctx context.Context, policy *rego.Policy, in *rego.Input) (map[string]json.RawMessage, error) {
	value, ok, err := policy.Eval(ctx, ruleExtensions, in)
	if err != nil || !ok {
		return nil, err
	}
	raw, err := json.Marshal(value)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", ruleExtensions, err)
	}
	var list []struct {
		Name  string          `json:"name"`
		Key   int32           `json:"key"` // for tokens in CBOR
		Value json.RawMessage `json:"value"`
	}
	if err := kbs.Decode(raw, kbs.MaxTokenReply, &list); err != nil {
		return nil, fmt.Errorf("rule %s is no list of name, key and value: %w: %w", ruleExtensions, err, errdefs.ErrInternal)
	}
	extensions := map[string]json.RawMessage{}
	for _, e := range list {
		if e.Name == "" || ear.Reserved(e.Name) {
			return nil, fmt.Errorf("rule %s names %q, which is taken: %w", ruleExtensions, e.Name, errdefs.ErrInternal)
		}
		extensions[e.Name] = e.Value
	}
	return extensions, nil
}

// compile returns the policy of a text, from memory where the text has been met before.
func (p *Policies) compile(id, text string, rules ...string) (*rego.Policy, error) {
	sum := sha256.Sum256([]byte(rules[0] + "\x00" + text))
	if policy, ok := p.compiled.Get(sum); ok {
		return policy, nil
	}
	policy, err := rego.Compile(strings.TrimSuffix(id, BuiltIn), text, rules...)
	if err == nil {
		p.compiled.Put(sum, policy)
	}
	return policy, err
}

// Digest names a policy's text.
func Digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "sha256:" + hex.EncodeToString(sum[:])
}

func clip(text string) string {
	if len(text) > 300 {
		return text[:300] + "..."
	}
	return text
}
