package appraise

import (
	"fmt"
	"maps"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/kbs"
)

// Registry holds the verifiers in use, one for each kind of TEE. It does not change, so calls may be concurrent.
type Registry struct {
	byTEE map[kbs.TEE]Verifier
}

// NewRegistry returns a Registry. Two verifiers for one TEE are AlreadyExists: which of them decides would depend on their order.
func NewRegistry(verifiers ...Verifier) (*Registry, error) {
	r := &Registry{byTEE: map[kbs.TEE]Verifier{}}
	for _, v := range verifiers {
		if _, ok := r.byTEE[v.TEE()]; ok {
			return nil, fmt.Errorf("two verifiers for tee %s: %w", v.TEE(), errdefs.ErrAlreadyExists)
		}
		r.byTEE[v.TEE()] = v
	}
	return r, nil
}

// Verifier returns the verifier for tee.
func (r *Registry) Verifier(tee kbs.TEE) (Verifier, bool) {
	v, ok := r.byTEE[tee]
	return v, ok
}

// TEEs lists the kinds that are accepted, in alphabetical order.
func (r *Registry) TEEs() []kbs.TEE {
	return slices.Sorted(maps.Keys(r.byTEE))
}
