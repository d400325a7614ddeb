package rego

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// Limits on policies. MaxTime is far above what an honest policy takes (well under a millisecond).
const (
	MaxText = 256 << 10 // bytes
	MaxTime = time.Second
)

// pkg is the package that every policy must be in, as in Trustee.
const pkg = "data.policy"

// Policy is a compiled policy. It may be evaluated concurrently.
type Policy struct {
	compiler *ast.Compiler
	queries  map[string]ast.Body
}

// Compile parses and checks a policy and prepares the rules that will be asked for. Rego v1 is tried first, then v0. Every fault is
// InvalidArgument, with the place in the text; the first rule must exist.
func Compile(name, text string, rules ...string) (*Policy, error) {
	bad := func(err error) (*Policy, error) {
		return nil, fmt.Errorf("policy %s: %s: %w", name, oneLine(err), errdefs.ErrInvalidArgument)
	}
	if len(text) > MaxText {
		return bad(fmt.Errorf("it is larger than %d bytes", MaxText))
	}
	module, err := parse(name, text)
	if err != nil {
		return bad(err)
	}
	if module.Package.Path.String() != pkg {
		return bad(errors.New("it is not in the package policy"))
	}
	compiler := ast.NewCompiler().WithCapabilities(capabilities())
	if compiler.Compile(map[string]*ast.Module{name: module}); compiler.Failed() {
		return bad(compiler.Errors)
	}
	p := &Policy{compiler: compiler, queries: map[string]ast.Body{}}
	for i, rule := range rules {
		ref := ast.MustParseRef(pkg + "." + rule)
		if i == 0 && len(compiler.GetRules(ref)) == 0 {
			return bad(fmt.Errorf("it has no rule %s", rule))
		}
		body, err := compiler.QueryCompiler().Compile(ast.NewBody(ast.Equality.Expr(ast.VarTerm("result"), ast.NewTerm(ref))))
		if err != nil {
			return bad(err)
		}
		p.queries[rule] = body
	}
	return p, nil
}

func parse(name, text string) (*ast.Module, error) {
	options := ast.ParserOptions{Capabilities: capabilities(), RegoVersion: ast.RegoV1}
	module, err := ast.ParseModuleWithOpts(name, text, options)
	if err == nil {
		return module, nil
	}
	options.RegoVersion = ast.RegoV0
	if old, oldErr := ast.ParseModuleWithOpts(name, text, options); oldErr == nil {
		return old, nil
	}
	return nil, err
}

// Document is JSON that policies can look at. It does not change, so that evaluations may share it.
type Document struct{ value ast.Value }

// Parse reads JSON of our own making; what cannot be read is Internal.
func Parse(raw []byte) (*Document, error) {
	value, err := ast.ValueFromReader(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("policy input is not JSON: %w", errdefs.ErrInternal)
	}
	return &Document{value: value}, nil
}

// Input is what a policy sees. It serves one policy.
type Input struct {
	// Document is the document input.
	Document *Document
	// Data is the document data, besides the policy itself. Its values are those of encoding/json.
	Data map[string]any
	// Reference answers query_reference_value; a value that does not exist is nil. nil means that there are no values at all.
	Reference func(ctx context.Context, name string) (any, error)

	// found is what the rules that were asked for had in common.
	found topdown.VirtualCache
}

// Eval returns the value of a rule that Compile was told of, as encoding/json would decode it. ok is false where the rule is undefined
// for this input. An error means that there is no answer: DeadlineExceeded, or Internal where an evaluation contradicts itself. One Input
// may serve several rules, one after the other.
func (p *Policy) Eval(ctx context.Context, rule string, in *Input) (value any, ok bool, err error) {
	ctx, stop := context.WithTimeout(ctx, MaxTime)
	defer stop()
	if in.found == nil {
		in.found = topdown.NewVirtualCache()
	}
	data := in.Data
	if data == nil {
		data = map[string]any{}
	}
	store := inmem.NewFromObjectWithOpts(data, inmem.OptRoundTripOnWrite(false), inmem.OptReturnASTValuesOnRead(false))
	txn, err := store.NewTransaction(ctx)
	if err != nil {
		return nil, false, fmt.Errorf("prepare policy data: %w", err)
	}
	defer store.Abort(ctx, txn)
	cancel := topdown.NewCancel()
	defer context.AfterFunc(ctx, cancel.Cancel)()
	results, err := topdown.NewQuery(p.queries[rule]).
		WithCompiler(p.compiler).WithStore(store).WithTransaction(txn).WithInput(ast.NewTerm(in.Document.value)).WithCancel(cancel).WithVirtualCache(in.found).
		WithBuiltins(map[string]*topdown.Builtin{queryReference: {Decl: referenceDecl, Func: in.reference}}).
		Run(ctx)
	if err != nil {
		in.found = nil // it may end in the middle of something
		return nil, false, evalError(ctx, rule, err)
	}
	if len(results) == 0 {
		return nil, false, nil
	}
	if value, err = ast.JSON(results[0]["result"].Value); err != nil {
		return nil, false, fmt.Errorf("policy rule %s has a value that is not JSON: %w", rule, errdefs.ErrInternal)
	}
	return value, true, nil
}

func evalError(ctx context.Context, rule string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("policy rule %s did not end within %s: %w", rule, MaxTime, ctx.Err())
	}
	return fmt.Errorf("policy rule %s: %w: %w", rule, err, errdefs.ErrInternal)
}

// reference is query_reference_value. A failed look-up ends the whole evaluation: a policy must not mistake it for a missing value.
func (in *Input) reference(bctx topdown.BuiltinContext, args []*ast.Term, iter func(*ast.Term) error) error {
	name, ok := args[0].Value.(ast.String)
	if !ok || in.Reference == nil {
		return iter(ast.NullTerm())
	}
	found, err := in.Reference(bctx.Context, string(name))
	if err != nil {
		return topdown.Halt{Err: fmt.Errorf("read reference value %q: %w", string(name), err)}
	}
	value, err := ast.InterfaceToValue(found)
	if err != nil {
		return topdown.Halt{Err: fmt.Errorf("reference value %q is not JSON: %w", string(name), err)}
	}
	return iter(ast.NewTerm(value))
}

// oneLine joins OPA's list of faults, at most its first few hundred bytes.
func oneLine(err error) string {
	text := strings.Join(strings.Fields(err.Error()), " ")
	if len(text) > 500 {
		text = text[:500] + "..."
	}
	return text
}
