package broker

import (
	"context"
	"fmt"

	"github.com/coffer-project/coffer/owner/appraise"
	"github.com/coffer-project/coffer/owner/broker/ear"
	"github.com/coffer-project/coffer/proto/kbs"
)

// Policy decides who gets which resource.
type Policy interface {
	// Allow decides on the claims of a token that the broker signed and that is valid. reason explains a refusal to the guest's admin
	// and goes to the audit log either way. An error refuses too.
	Allow(ctx context.Context, claims *ear.Claims, resource kbs.ResourceURI) (allowed bool, reason string, err error)
}

// FixedPolicy releases every resource to guests all of whose parts were appraised as affirming.
type FixedPolicy struct {
	// AllowSample admits guests of the sample TEE too, which prove nothing.
	AllowSample bool
}

// Allow implements Policy.
func (p FixedPolicy) Allow(_ context.Context, claims *ear.Claims, _ kbs.ResourceURI) (bool, string, error) {
	if len(claims.Submods) == 0 {
		return false, "the token appraises nothing", nil
	}
	if claims.Has(string(kbs.TEESample)) {
		if p.AllowSample && len(claims.Submods) == 1 {
			return true, "sample evidence is allowed", nil
		}
		return false, "sample evidence proves nothing and is not allowed", nil
	}
	for name, submod := range claims.Submods {
		if submod.Status != appraise.Affirming {
			return false, fmt.Sprintf("%s was appraised as %q, not as affirming", name, submod.Status), nil
		}
	}
	return true, "all parts were appraised as affirming", nil
}
