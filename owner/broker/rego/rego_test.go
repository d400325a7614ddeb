package rego

import (
	"context"
	"encoding/json"
	"errors"
	"reflect"
	"strconv"
	"strings"
	"sync"
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
				Document: document(t, `{"x":1,"y":2}`), Data: map[string]any{"resource-path": []any{"repo", "type", "tag"}}, Reference: reference,
			})
			if !errors.Is(err, tc.err) || ok != tc.ok || err == nil && !reflect.DeepEqual(got, tc.want) {
				t.Errorf("got %v %v %v, want %v %v %v", got, ok, err, tc.want, tc.ok, tc.err)
			}
		})
	}
}

func document(t *testing.T, raw string) *Document {
	t.Helper()
	d, err := Parse([]byte(raw))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestParseRefuses(t *testing.T) {
	if _, err := Parse([]byte("{")); !errors.Is(err, errdefs.ErrInternal) {
		t.Errorf("got %v", err)
	}
}

// What one evaluation finds out must not be seen by another one of the same document.
func TestEvalsShareADocument(t *testing.T) {
	p, err := Compile("test", `package policy
allow if count(wanted) == 1
wanted contains x if { some x in input.list; x == data.want }
reason := concat(",", [sprintf("%v", [x]) | some x in wanted])`, "allow", "reason")
	if err != nil {
		t.Fatal(err)
	}
	d := document(t, `{"list":[1,2,3]}`)
	var group sync.WaitGroup
	for want := range 16 {
		group.Go(func() {
			in := &Input{Document: d, Data: map[string]any{"want": json.Number(strconv.Itoa(want))}}
			_, allowed, err := p.Eval(t.Context(), "allow", in)
			if err != nil || allowed != (want >= 1 && want <= 3) {
				t.Errorf("%d: %v, %v", want, allowed, err)
			}
			reason, _, err := p.Eval(t.Context(), "reason", in)
			if err != nil || allowed != (reason == strconv.Itoa(want)) {
				t.Errorf("%d: %v, %v", want, reason, err)
			}
		})
	}
	group.Wait()
}

func TestEvalOtherRule(t *testing.T) {
	p, err := Compile("test", "package policy\nallow := true", "allow", "extensions")
	if err != nil {
		t.Fatal(err)
	}
	if _, ok, err := p.Eval(t.Context(), "extensions", &Input{Document: document(t, "{}")}); ok || err != nil {
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
		if document, err := Parse(input); err == nil {
			p.Eval(ctx, "allow", &Input{Document: document})
		}
	})
}
