package agentpolicy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/topdown"
	"github.com/open-policy-agent/opa/v1/topdown/print"
)

// Limits on what is said about a refusal.
const (
	maxReasons    = 8
	maxReason     = 256 // bytes of one
	maxPrinted    = 1 << 20
	maxCached     = 256
	maxCachedSize = 4096 // bytes of a request that is remembered
)

// Decision is what a policy says about one request.
type Decision struct {
	Allowed bool
	// Reasons are the policy's own words about a refusal.
	Reasons []string
	// Known is false when the policy has no rule for the request, which is a refusal, too.
	Known bool
	ops   []op
}

// Decide asks the rule about a request, which is as [Input] returns it. What an allowed request does to the state is done before Decide
// returns when commit is set, and else dropped. Errors are a refusal as well: InvalidArgument, the rule's value is none that the contract
// knows; ResourceExhausted, the decision takes too much.
func (p *Policy) Decide(ctx context.Context, rule string, input map[string]any, commit bool) (Decision, error) {
	return p.decide(ctx, rule, input, commit, nil)
}

// Explain is Decide with what the policy prints on the way. It is for whoever writes a policy: what is printed may quote the request.
func (p *Policy) Explain(ctx context.Context, rule string, input map[string]any, commit bool, printed io.Writer) (Decision, error) {
	return p.decide(ctx, rule, input, commit, printed)
}

func (p *Policy) decide(ctx context.Context, rule string, input map[string]any, commit bool, printed io.Writer) (Decision, error) {
	if !p.Has(rule) {
		return Decision{}, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	key := cacheKey(rule, input)
	if d, ok := p.cache[key]; ok && key != "" && printed == nil {
		return d, nil
	}
	value, err := p.evaluate(ctx, rule, input, printed)
	if err != nil {
		return Decision{}, err
	}
	d, err := read(rule, value)
	if err != nil {
		return Decision{}, err
	}
	if !d.Allowed {
		if err := p.addReasons(ctx, &d, input); err != nil {
			return Decision{}, err
		}
	}
	if d.Allowed && len(d.ops) > 0 {
		// Operations that cannot be carried out are a refusal at every stage.
		next, err := apply(p.state, d.ops)
		if err != nil {
			return Decision{}, fmt.Errorf("%s: %w", rule, err)
		}
		if commit {
			p.state = next
			clear(p.cache)
		}
		return d, nil
	}
	p.remember(key, d)
	return d, nil
}

// cacheKey names a decision that is made over and over, such as those about streams. A policy knows nothing but request and state, so
// the same request gets the same answer until the state changes.
func cacheKey(rule string, input map[string]any) string {
	raw, err := json.Marshal(input)
	if err != nil || len(raw) > maxCachedSize {
		return ""
	}
	return rule + "\n" + string(raw)
}

func (p *Policy) remember(key string, d Decision) {
	if key == "" {
		return
	}
	if len(p.cache) >= maxCached {
		clear(p.cache)
	}
	p.cache[key] = d
}

// read makes a decision of a rule's value: true, false, nothing, or an object with allowed and perhaps ops and reason.
func read(rule string, value any) (Decision, error) {
	switch v := value.(type) {
	case nil:
		return Decision{Known: true}, nil // a rule without a default that does not hold
	case bool:
		return Decision{Known: true, Allowed: v}, nil
	case map[string]any:
		return readObject(rule, v)
	default:
		return Decision{}, fmt.Errorf("%s is neither true, false nor an object with allowed: %w", rule, errdefs.ErrInvalidArgument)
	}
}

func readObject(rule string, object map[string]any) (Decision, error) {
	raw, err := json.Marshal(object)
	if err != nil {
		return Decision{}, fmt.Errorf("read %s: %w", rule, err)
	}
	var answer struct {
		Allowed *bool  `json:"allowed"`
		Ops     []op   `json:"ops"`
		Reason  string `json:"reason"`
	}
	if err := json.Unmarshal(raw, &answer); err != nil || answer.Allowed == nil {
		return Decision{}, fmt.Errorf("%s is an object that is not allowed, ops and reason: %w", rule, errdefs.ErrInvalidArgument)
	}
	d := Decision{Known: true, Allowed: *answer.Allowed, ops: answer.Ops}
	if answer.Reason != "" && !d.Allowed {
		d.Reasons = []string{clip(answer.Reason)}
	}
	return d, nil
}

// addReasons asks the policy why it refuses. The lock is held.
func (p *Policy) addReasons(ctx context.Context, d *Decision, input map[string]any) error {
	if !p.Has(ruleReasons) {
		return nil
	}
	value, err := p.evaluate(ctx, ruleReasons, input, nil)
	if err != nil {
		return err
	}
	list, _ := value.([]any)
	for _, entry := range list {
		if text, ok := entry.(string); ok && len(d.Reasons) < maxReasons {
			d.Reasons = append(d.Reasons, clip(text))
		}
	}
	slices.Sort(d.Reasons)
	d.Reasons = slices.Compact(d.Reasons)
	return nil
}

func clip(text string) string {
	if len(text) > maxReason {
		text = text[:maxReason] + "..."
	}
	return strings.ToValidUTF8(text, "?")
}

// evaluate returns a rule's value, nil when it has none. The lock is held.
func (p *Policy) evaluate(ctx context.Context, rule string, input map[string]any, printed io.Writer) (any, error) {
	q, err := p.query(rule)
	if err != nil {
		return nil, err
	}
	value, err := ast.InterfaceToValue(input)
	if err != nil {
		return nil, fmt.Errorf("show request to policy: %w", err)
	}
	store := inmem.NewFromObject(map[string]any{stateKey: p.state})
	txn, err := store.NewTransaction(ctx)
	if err != nil {
		return nil, fmt.Errorf("show state to policy: %w", err)
	}
	defer store.Abort(ctx, txn)
	limit := newBudget(ctx)
	query := topdown.NewQuery(q.body).WithQueryCompiler(q.compiler).WithCompiler(p.compiler).WithStore(store).WithTransaction(txn).
		WithCancel(limit).WithInput(ast.NewTerm(value))
	if printed != nil {
		query = query.WithPrintHook(&printer{out: printed, left: maxPrinted})
	}
	results, err := query.Run(ctx)
	switch {
	case limit.reason != "":
		return nil, fmt.Errorf("%s cannot be decided: %s: %w", rule, limit.reason, errdefs.ErrResourceExhausted)
	case err != nil:
		return nil, evaluationFault(rule, err)
	case len(results) == 0:
		return nil, nil
	}
	out, err := ast.JSON(results[0][answer].Value)
	if err != nil {
		return nil, fmt.Errorf("read value of %s: %w", rule, err)
	}
	return out, nil
}

// evaluationFault names the line and not the values: those are the request's.
func evaluationFault(rule string, err error) error {
	if fault, ok := errors.AsType[*topdown.Error](err); ok && fault.Location != nil {
		return fmt.Errorf("%s cannot be decided (policy line %d: %s): %w", rule, fault.Location.Row, fault.Code, errdefs.ErrInvalidArgument)
	}
	return fmt.Errorf("%s cannot be decided: %w", rule, errdefs.ErrInvalidArgument)
}

// printer hands on what a policy prints, up to a limit.
type printer struct {
	out  io.Writer
	left int
}

// Print implements print.Hook.
func (p *printer) Print(ctx print.Context, text string) error {
	line := fmt.Sprintf("line %d: %s\n", ctx.Location.Row, text)
	if p.left -= len(line); p.left < 0 {
		return nil
	}
	_, err := io.WriteString(p.out, line)
	return err
}
