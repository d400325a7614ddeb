package rego

import (
	"context"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestEval(t *testing.T) {
	reference := func(_ context.Context, name string) (any, error) {
		switch name {
		case "known":
			return []any{"a", "b"}, nil
		case "broken":
			return nil, errdefs.ErrUnavailable
		}
		return nil, nil
	}
	for name, tc := range map[string]struct {
		policy string
		want   any
		ok     bool
		err    error
	}{
		"true": {`default allow := false
allow if input.x == 1`, true, true, nil},
		"undefined":           {"allow if input.x == 2", nil, false, nil},
		"data":                {`allow if data["resource-path"][2] == "tag"`, true, true, nil},
		"old syntax":          {`allow { input.x == 1 }`, true, true, nil},
		"reference":           {`allow if "a" in query_reference_value("known")`, true, true, nil},
		"no reference":        {`allow if "a" in query_reference_value("unknown")`, nil, false, nil},
		"absent reference":    {`allow if query_reference_value("unknown") == null`, true, true, nil},
		"object":              {`allow := {"n": [1, "x", null]}`, map[string]any{"n": []any{json.Number("1"), "x", nil}}, true, nil},
		"contradiction":       {"allow := 1 if input.x == 1\nallow := 2 if input.y == 2", nil, false, errdefs.ErrInternal},
		"failing reference":   {`allow if not query_reference_value("broken")`, nil, false, errdefs.ErrUnavailable},
		"runs away":           {`allow if { some i in numbers.range(1, 100000); some j in numbers.range(1, 100000); i * j == -1 }`, nil, false, context.DeadlineExceeded},
		"built-in that fails": {`allow if to_number("x") == 1`, nil, false, nil},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := Compile("test", "package policy\n"+tc.policy, "allow")
			if err != nil {
				t.Fatal(err)
			}
			got, ok, err := p.Eval(t.Context(), "allow", &Input{
				JSON: []byte(`{"x":1,"y":2}`), Data: map[string]any{"resource-path": []any{"repo", "type", "tag"}}, Reference: reference,
			})
			if !errors.Is(err, tc.err) || ok != tc.ok || err == nil && !reflect.DeepEqual(got, tc.want) {
				t.Errorf("got %v %v %v, want %v %v %v", got, ok, err, tc.want, tc.ok, tc.err)
			}
		})
	}
}

func TestEvalOtherRule(t *testing.T) {
	p, err := Compile("test", "package policy\nallow := true", "allow", "extensions")
	if err != nil {
		t.Fatal(err)
	}
	if _, ok, err := p.Eval(t.Context(), "extensions", &Input{JSON: []byte("{}")}); ok || err != nil {
		t.Errorf("a rule that is not there: %v, %v", ok, err)
	}
}

// A policy reaches nothing but what it is given.
func TestCompileRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"not Rego":      "allow everything",
		"other package": "package agent_policy\nallow := true",
		"no rule":       "package policy\npermit := true",
		"network":       `package policy` + "\n" + `allow if http.send({"method": "get", "url": "http://x"}).status_code == 200`,
		"name look-up":  "package policy\n" + `allow if count(net.lookup_ip_addr("x")) > 0`,
		"environment":   "package policy\n" + `allow if opa.runtime().env.HOME`,
		"randomness":    "package policy\n" + `allow if rand.intn("x", 2) == 1`,
		"other policy":  "package policy\n" + `allow if rego.parse_module("x", "package y")`,
		"token":         "package policy\n" + `allow if io.jwt.decode(input.x)`,
		"schema":        "package policy\n" + `allow if json.match_schema(input.x, {"$ref": "file:///etc/passwd"})`,
		"amplifier":     "package policy\n" + `allow if count(net.cidr_expand("::/0")) > 1`,
		"too large":     "package policy\nallow := true\n#" + strings.Repeat("x", MaxText),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Compile("test", text, "allow")
			if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), "policy test") || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v", err)
			}
		})
	}
}

func FuzzCompile(f *testing.F) {
	f.Add("package policy\nallow := true", []byte(`{"a":1}`))
	f.Add("package policy\nallow { input.a = 1 }", []byte(`[]`))
	f.Fuzz(func(t *testing.T, text string, input []byte) {
		p, err := Compile("fuzz", text, "allow")
		if err != nil {
			if !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Errorf("class of %v", err)
			}
			return
		}
		ctx, cancel := context.WithTimeout(t.Context(), MaxTime/20)
		defer cancel()
		p.Eval(ctx, "allow", &Input{JSON: input})
	})
}
