package rego

import (
	"slices"
	"strings"
	"sync"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/types"
)

// queryReference is the function by which Trustee's attestation policies read reference values.
const queryReference = "query_reference_value"

// Built-in functions that policies may call: pure computation, and the clock (collateral has dates). All others, also those that a newer
// OPA may bring, do not exist for a policy: network, files, environment, randomness, tokens, certificates, other policies.
var (
	allowedFamilies = []string{
		"array.", "base64.", "base64url.", "bits.", "cast_", "glob.", "hex.", "internal.member_", "is_", "json.", "net.cidr_", "numbers.",
		"object.", "regex.", "semver.", "strings.", "time.", "units.", "urlquery.",
	}
	allowedFunctions = []string{
		"abs", "all", "and", "any", "assign", "ceil", "concat", "contains", "count", "crypto.sha256", "div", "endswith", "eq", "equal",
		"floor", "format_int", "gt", "gte", "indexof", "indexof_n", "intersection", "lower", "lt", "lte", "max", "min", "minus", "mul",
		"neq", "or", "plus", "product", "rem", "replace", "round", "set_diff", "sort", "split", "sprintf", "startswith", "substring",
		"sum", "to_number", "trim", "trim_left", "trim_prefix", "trim_right", "trim_space", "trim_suffix", "type_name", "union", "upper",
		"walk",
	}
	// These belong to an allowed family but read schemas, from wherever those point to, or expand without bounds.
	forbiddenFunctions = []string{"json.match_schema", "json.verify_schema", "net.cidr_expand", "strings.render_template"}
)

// referenceDecl declares queryReference to the compiler: any value may come back.
var referenceDecl = &ast.Builtin{
	Name:             queryReference,
	Decl:             types.NewFunction(types.Args(types.S), types.A),
	Nondeterministic: true,
}

// capabilities is the whole language that policies are compiled in.
var capabilities = sync.OnceValue(func() *ast.Capabilities {
	c := ast.CapabilitiesForThisVersion()
	c.Builtins = slices.DeleteFunc(c.Builtins, func(b *ast.Builtin) bool { return !allowed(b.Name) })
	c.Builtins = append(c.Builtins, referenceDecl)
	c.AllowNet = []string{}
	return c
})

func allowed(name string) bool {
	if slices.Contains(forbiddenFunctions, name) {
		return false
	}
	if slices.Contains(allowedFunctions, name) {
		return true
	}
	return slices.ContainsFunc(allowedFamilies, func(family string) bool { return strings.HasPrefix(name, family) })
}
