package agentpolicy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// Package is the package that every policy is in.
const Package = "agent_policy"

// MaxSize bounds a policy's text in bytes. The document that carries it is bounded, too.
const MaxSize = 1 << 20

// Rules with a meaning beside those named after requests.
const (
	ruleAllowFailing = "AllowRequestsFailingPolicy"
	// ruleReasons is a set or a list of texts, asked for after a refusal: why. It is not Kata's.
	ruleReasons = "reasons"
)

// maxFaults bounds the faults that a text's error names.
const maxFaults = 4

// Policy is a policy that was read, with its state. It is safe for concurrent use; decisions are made one after the other.
type Policy struct {
	compiler *ast.Compiler

	mu      sync.Mutex
	queries map[string]*prepared
	state   map[string]any
	cache   map[string]Decision
}

// Compile reads a policy. InvalidArgument: it is none that can be enforced; the text names the lines. A policy that would allow what it
// refuses (AllowRequestsFailingPolicy) is not one either.
func Compile(text string) (*Policy, error) {
	if len(text) > MaxSize {
		return nil, fmt.Errorf("policy of %d bytes is larger than the limit of %d: %w", len(text), MaxSize, errdefs.ErrInvalidArgument)
	}
	module, err := parse(text)
	if err != nil {
		return nil, err
	}
	if got := strings.TrimPrefix(module.Package.Path.String(), "data."); got != Package {
		return nil, fmt.Errorf("policy is package %.64s (line %d), not %s: %w", got, module.Package.Location.Row, Package, errdefs.ErrInvalidArgument)
	}
	compiler := ast.NewCompiler().WithCapabilities(capabilities()).WithEnablePrintStatements(true).SetErrorLimit(maxFaults)
	if compiler.Compile(map[string]*ast.Module{Package: module}); compiler.Failed() {
		return nil, faults(compiler.Errors)
	}
	p := &Policy{compiler: compiler, queries: map[string]*prepared{}, state: map[string]any{}, cache: map[string]Decision{}}
	return p, p.refuseAllowFailing()
}

// parse reads the text in today's Rego, and failing that in the Rego before version 1, which Kata's tools still write.
func parse(text string) (*ast.Module, error) {
	read := func(version ast.RegoVersion) (*ast.Module, error) {
		return ast.ParseModuleWithOpts("policy.rego", text, ast.ParserOptions{RegoVersion: version, Capabilities: limited(ast.CapabilitiesRegoVersion(version))})
	}
	module, err := read(ast.RegoV1)
	if err == nil {
		return module, nil
	}
	if old, oldErr := read(ast.RegoV0); oldErr == nil {
		return old, nil
	}
	if list, ok := errors.AsType[ast.Errors](err); ok {
		return nil, faults(list)
	}
	return nil, fmt.Errorf("policy: %.200q: %w", err.Error(), errdefs.ErrInvalidArgument)
}

// faults lists the first ones with their lines. Policies are no secrets.
func faults(list ast.Errors) error {
	var out []string
	for _, e := range list[:min(len(list), maxFaults)] {
		line := 0
		if e.Location != nil {
			line = e.Location.Row
		}
		out = append(out, fmt.Sprintf("line %d: %.200s", line, e.Message))
	}
	return fmt.Errorf("policy cannot be enforced: %s: %w", strings.Join(out, "; "), errdefs.ErrInvalidArgument)
}

// refuseAllowFailing refuses Kata's way to make a policy allow everything that it does not allow.
func (p *Policy) refuseAllowFailing() error {
	rules := p.compiler.GetRulesExact(reference(ruleAllowFailing))
	if len(rules) == 0 {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	value, err := p.evaluate(context.Background(), ruleAllowFailing, map[string]any{}, nil)
	if err != nil {
		return err
	}
	if value == nil || value == false {
		return nil
	}
	return fmt.Errorf("policy sets %s (line %d), which would allow all that it refuses: remove the rule: %w",
		ruleAllowFailing, rules[len(rules)-1].Location.Row, errdefs.ErrInvalidArgument)
}

// Has tells whether the policy has a rule of that name.
func (p *Policy) Has(rule string) bool { return len(p.compiler.GetRulesExact(reference(rule))) > 0 }

func reference(rule string) ast.Ref {
	return ast.Ref{ast.DefaultRootDocument, ast.StringTerm(Package), ast.StringTerm(rule)}
}

// The functions that a policy does not get: families of names that end with a dot, and single ones. They reach the network, tell of the
// machine, or read formats that no request has. Nor does it get what is marked as nondeterministic.
var withheld = []string{
	"http.", "net.lookup_ip_addr", "opa.", "rego.", "graphql.", "io.jwt.", "providers.", "uuid.", "crypto.x509.", "json.match_schema",
	"json.verify_schema", "rand.", "time.now_ns",
}

func limited(option ast.CapabilitiesOption) *ast.Capabilities {
	c := ast.CapabilitiesForThisVersion(option)
	c.AllowNet = []string{}
	c.Builtins = slices.DeleteFunc(c.Builtins, func(b *ast.Builtin) bool {
		return b.Nondeterministic || slices.ContainsFunc(withheld, func(name string) bool {
			return b.Name == name || strings.HasSuffix(name, ".") && strings.HasPrefix(b.Name, name)
		})
	})
	return c
}

func capabilities() *ast.Capabilities { return limited(ast.CapabilitiesRegoVersion(ast.RegoV1)) }

// prepared is the question for one rule's value.
type prepared struct {
	body     ast.Body
	compiler ast.QueryCompiler
}

var answer = ast.Var("answer")

// query returns the question for a rule, prepared once. The lock is held.
func (p *Policy) query(rule string) (*prepared, error) {
	if q, ok := p.queries[rule]; ok {
		return q, nil
	}
	qc := p.compiler.QueryCompiler()
	body, err := qc.Compile(ast.NewBody(ast.Equality.Expr(ast.NewTerm(answer), ast.NewTerm(reference(rule)))))
	if err != nil {
		return nil, fmt.Errorf("prepare question about %s: %w", rule, err)
	}
	q := &prepared{body: body, compiler: qc}
	p.queries[rule] = q
	return q, nil
}

var _ topdown.Cancel = (*budget)(nil)
