package policy

import (
	"context"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"google.golang.org/protobuf/proto"

	agentpb "github.com/coffer-project/coffer/proto/agent"
	"github.com/coffer-project/coffer/proto/agentpolicy"
)

const createContainer = "CreateContainer"

// ours are the requests that Kata does not have, so that policies of Kata's tools have no rules for them. Without a rule, those are
// allowed that tell how a pull or the boot went, or remove files that the host has copied in itself; the others are denied.
var ours = map[string]bool{
	"GetBootReport": true, "GetPullReport": true, "GetContainerUser": true, "WaitPull": true, "RemoveFiles": true, "Forward": false,
	// Asked by the pod's own programs, if the document that carries the policy lists them (rest.serve).
	"GetResource": true, "GetToken": true, "GetEvidence": true,
}

// Measured is the owner's policy from the measured document. The built-in table holds as well: both must allow.
type Measured struct {
	table  *Builtin
	policy *agentpolicy.Policy
}

// NewMeasured reads the policy of a measured document. InvalidArgument: it cannot be enforced; the text says why and where.
func NewMeasured(text string) (*Measured, error) {
	p, err := agentpolicy.Compile(text)
	if err != nil {
		return nil, err
	}
	return &Measured{table: NewBuiltin(), policy: p}, nil
}

// Allow implements [Engine]. About a new container the policy itself is asked in AllowContainer.
func (m *Measured) Allow(ctx context.Context, method string, request proto.Message) error {
	if err := m.table.Allow(ctx, method, request); err != nil || early[method] || method == createContainer {
		return err
	}
	if allowed, known := ours[method]; known && !m.policy.Has(agentpolicy.RuleName(request)) {
		if !allowed {
			return deny(method, fmt.Sprintf("the measured policy has no rule %s", agentpolicy.RuleName(request)))
		}
		return nil
	}
	return m.decide(ctx, method, request, &agentpolicy.Facts{Method: method}, true)
}

// AllowContainer implements [Engine]. The state changes at the second stage only, so that a container whose image does not come leaves
// no trace, and two that are created at the same time are judged one after the other.
func (m *Measured) AllowContainer(ctx context.Context, request *agentpb.CreateContainerRequest, facts *agentpolicy.Facts) error {
	shown := *facts
	shown.Method = createContainer
	return m.decide(ctx, createContainer, request, &shown, facts.Stage == agentpolicy.StageContainer)
}

func (m *Measured) decide(ctx context.Context, method string, request proto.Message, facts *agentpolicy.Facts, commit bool) error {
	input, err := agentpolicy.Input(request, facts)
	if err != nil {
		return fmt.Errorf("%s is blocked by policy: %w: %w", method, err, errdefs.ErrPermissionDenied)
	}
	rule := agentpolicy.RuleName(request)
	d, err := m.policy.Decide(ctx, rule, input, commit)
	switch {
	case err != nil:
		log.G(ctx).WithField("rule", rule).WithError(err).Warn("measured policy could not decide")
		return deny(method, fmt.Sprintf("the measured policy could not decide: %s", err))
	case d.Allowed:
		return nil
	case !d.Known:
		return deny(method, fmt.Sprintf("the measured policy has no rule %s", rule))
	case len(d.Reasons) > 0:
		return deny(method, strings.Join(d.Reasons, "; "))
	default:
		return deny(method, fmt.Sprintf("rule %s of the measured policy does not hold%s (cofferctl policy check tells more)", rule, m.stranger(request)))
	}
}

// annotationKataKind is how Kata's shims tell containers from sandboxes, which policies of its genpolicy insist on. Other shims do not send it.
const annotationKataKind = "io.katacontainers.pkg.oci.container_type"

// stranger explains why a policy of Kata's genpolicy, which gives no reasons itself, refuses every container of another shim than Kata's.
func (m *Measured) stranger(request proto.Message) string {
	r, ok := request.(*agentpb.CreateContainerRequest)
	if !ok || r.GetOCI().GetAnnotations()[annotationKataKind] != "" || !m.policy.Has("policy_data") || m.policy.Has("reasons") {
		return ""
	}
	return ", and is for containers that Kata's own shim describes: for this shim, make the policy with cofferctl policy generate"
}
