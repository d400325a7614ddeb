package agentpolicy

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	agentpb "github.com/coffer-project/coffer/proto/agent"
)

// idiom is a policy in the manner of Kata's generator: rules over a constant, with what happened so far in data.pstate.
const idiom = `package agent_policy

import future.keywords.in
import future.keywords.if
import future.keywords.every

default CreateContainerRequest := false
default RemoveContainerRequest := false
default ExecProcessRequest := false
default ReadStreamRequest := false
default AllowRequestsFailingPolicy := false
default DestroySandboxRequest := true

CreateContainerRequest := {"ops": ops, "allowed": true} if {
	is_null(input.string_user)
	is_null(input.OCI.Hooks)
	count(input.shared_mounts) == 0
	some idx, c in policy_data.containers
	c.args == input.OCI.Process.Args
	every m in input.OCI.Mounts {
		m.type_ in ["proc", "bind"]
	}
	not data.pstate[input.container_id]
	ops := [{"op": "add", "path": concat("/", ["/pstate", input.container_id]), "value": idx}]
	print("container", idx)
}

RemoveContainerRequest := {"ops": [{"op": "remove", "path": concat("/", ["/pstate", input.container_id])}], "allowed": true}

ExecProcessRequest if {
	c := policy_data.containers[data.pstate[input.container_id]]
	input.process.Args in c.exec
}

ReadStreamRequest if input.coffer.method == "ReadStderr"

reasons contains "standard output is confidential" if input.coffer.method == "ReadStdout"

policy_data := {"containers": [
	{"args": ["/app"], "exec": [["/probe", "-q"]]},
	{"args": ["/sidecar"], "exec": []},
]}
`

func compile(t *testing.T, text string) *Policy {
	t.Helper()
	p, err := Compile(text)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func create(id string, args ...string) *agentpb.CreateContainerRequest {
	r := &agentpb.CreateContainerRequest{ContainerId: id}
	setArgs(r, args)
	return r
}

func decide(t *testing.T, p *Policy, rule string, input map[string]any, commit bool) Decision {
	t.Helper()
	d, err := p.Decide(t.Context(), rule, input, commit)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestState: what is allowed is remembered, what is refused and what was only tried is not.
func TestState(t *testing.T) {
	p := compile(t, idiom)
	shown := func(r *agentpb.CreateContainerRequest) map[string]any {
		in, err := Input(r, &Facts{Method: "CreateContainer"})
		if err != nil {
			t.Fatal(err)
		}
		return in
	}
	exec := map[string]any{"container_id": "c1", "process": map[string]any{"Args": []any{"/probe", "-q"}}}
	steps := []struct {
		what, rule string
		input      map[string]any
		commit     bool
		allowed    bool
	}{
		{"other program", "CreateContainerRequest", shown(create("c0", "/bin/sh")), true, false},
		{"try", "CreateContainerRequest", shown(create("c1", "/app")), false, true},
		{"exec before the container", "ExecProcessRequest", exec, true, false},
		{"create", "CreateContainerRequest", shown(create("c1", "/app")), true, true},
		{"replay", "CreateContainerRequest", shown(create("c1", "/app")), true, false},
		{"replay as another", "CreateContainerRequest", shown(create("c1", "/sidecar")), false, false},
		{"exec", "ExecProcessRequest", exec, true, true},
		{"remove", "RemoveContainerRequest", map[string]any{"container_id": "c1"}, true, true},
		{"exec after the container", "ExecProcessRequest", exec, true, false},
		{"create again", "CreateContainerRequest", shown(create("c1", "/sidecar")), true, true},
		{"exec in another", "ExecProcessRequest", exec, true, false},
		{"default", "DestroySandboxRequest", map[string]any{}, true, true},
		{"no rule", "SetPolicyRequest", map[string]any{}, true, false},
	}
	for _, s := range steps {
		if d := decide(t, p, s.rule, s.input, s.commit); d.Allowed != s.allowed {
			t.Errorf("%s: allowed %t, want %t", s.what, d.Allowed, s.allowed)
		}
	}
	if _, err := p.Decide(t.Context(), "RemoveContainerRequest", map[string]any{"container_id": "c9"}, true); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("removing what is not in the state: %v", err)
	}
}

func TestReasonsAndPrints(t *testing.T) {
	p := compile(t, idiom)
	for method, want := range map[string]bool{"ReadStdout": false, "ReadStderr": true} {
		for range 2 { // the second one is remembered
			d := decide(t, p, "ReadStreamRequest", map[string]any{"coffer": map[string]any{"method": method}}, true)
			if d.Allowed != want || !d.Known || !want && strings.Join(d.Reasons, "") != "standard output is confidential" {
				t.Errorf("%s: %+v", method, d)
			}
		}
	}
	if d := decide(t, p, "WriteStreamRequest", map[string]any{}, true); d.Known || d.Allowed {
		t.Errorf("rule that is not there: %+v", d)
	}
	own := compile(t, "package agent_policy\nWriteStreamRequest := {\"allowed\": false, \"reason\": \"no input\"}")
	if d := decide(t, own, "WriteStreamRequest", map[string]any{}, true); d.Allowed || strings.Join(d.Reasons, "") != "no input" {
		t.Errorf("reason of its own: %+v", d)
	}
	var out strings.Builder
	in, err := Input(create("c1", "/app"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if d, err := p.Explain(t.Context(), "CreateContainerRequest", in, false, &out); err != nil || !d.Allowed || !strings.Contains(out.String(), "line 25: container 0") {
		t.Errorf("%+v %v %q", d, err, out.String())
	}
}

func TestCompile(t *testing.T) {
	cases := map[string]struct {
		text string
		want []string // of the fault; none: it compiles
	}{
		"own idiom":             {idiom, nil},
		"before version 1":      {"package agent_policy\ndefault ExecProcessRequest = false\nExecProcessRequest { input.container_id == \"a\" }\n", nil},
		"empty":                 {"", []string{"policy"}},
		"no Rego":               {"package agent_policy\n\nfoo bar :=", []string{"line 3"}},
		"other package":         {"package policy\nallow := true", []string{"package policy (line 1)", "agent_policy"}},
		"below the package":     {"package agent_policy.sub\nx := true", []string{"agent_policy.sub"}},
		"unknown function":      {"package agent_policy\n\nExecProcessRequest if frobnicate(input)", []string{"line 3", "frobnicate"}},
		"network":               {"package agent_policy\nExecProcessRequest if http.send({\"method\": \"get\", \"url\": \"http://a\"}).status_code == 200", []string{"line 2", "http.send"}},
		"names of hosts":        {"package agent_policy\nExecProcessRequest if net.lookup_ip_addr(\"a\")", []string{"line 2", "net.lookup_ip_addr"}},
		"environment":           {"package agent_policy\nExecProcessRequest if opa.runtime().env.A", []string{"opa.runtime"}},
		"clock":                 {"package agent_policy\nExecProcessRequest if time.now_ns() > 1", []string{"time.now_ns"}},
		"chance":                {"package agent_policy\nExecProcessRequest if rand.intn(\"a\", 2) == 1", []string{"rand.intn"}},
		"recursion":             {"package agent_policy\nfirst if second == 1\nsecond := 1 if first", []string{"line 2", "recursive"}},
		"field that is missing": {"package agent_policy\nd := {\"a\": 1}\nExecProcessRequest if d.b == 1", []string{"line 3"}},
		"allows what fails":     {"package agent_policy\n\ndefault AllowRequestsFailingPolicy := true", []string{"line 3", "AllowRequestsFailingPolicy", "remove"}},
		"allows what fails, so": {"package agent_policy\nAllowRequestsFailingPolicy := {\"allowed\": true}", []string{"AllowRequestsFailingPolicy"}},
		"too large":             {"package agent_policy\n#" + strings.Repeat("x", MaxSize), []string{"larger than the limit"}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := Compile(tc.text)
			if tc.want == nil {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Fatalf("error: %v", err)
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v lacks %q", err, want)
				}
			}
		})
	}
}

// TestBudget: a policy that would not end is a refusal, and the next decision is as quick as ever.
func TestBudget(t *testing.T) {
	p := compile(t, `package agent_policy
ExecProcessRequest if {
	some a in numbers.range(1, 100000)
	some b in numbers.range(1, 100000)
	a + b == -1
}

WriteStreamRequest if {
	texts := [text | some i in numbers.range(1, 1000000); text := sprintf("%01000000d", [i])]
	count(texts) == 1
}
`)
	begin := time.Now()
	for _, rule := range []string{"ExecProcessRequest", "WriteStreamRequest"} {
		if _, err := p.Decide(t.Context(), rule, map[string]any{}, true); !errors.Is(err, errdefs.ErrResourceExhausted) {
			t.Errorf("%s: %v", rule, err)
		}
	}
	t.Logf("given up after %s", time.Since(begin))
}

func TestValues(t *testing.T) {
	for name, text := range map[string]string{
		"number":              "X := 1",
		"text":                `X := "true"`,
		"list":                `X := [true]`,
		"object without":      `X := {"ops": []}`,
		"allowed as text":     `X := {"allowed": "true"}`,
		"ops as text":         `X := {"allowed": true, "ops": "none"}`,
		"other operation":     `X := {"allowed": true, "ops": [{"op": "frob", "path": "/pstate/a", "value": 1}]}`,
		"outside the state":   `X := {"allowed": true, "ops": [{"op": "add", "path": "/agent_policy/a", "value": 1}]}`,
		"the state as such":   `X := {"allowed": true, "ops": [{"op": "add", "path": "/pstate", "value": 1}]}`,
		"below an entry":      `X := {"allowed": true, "ops": [{"op": "add", "path": "/pstate/a/b", "value": 1}]}`,
		"replace of nothing":  `X := {"allowed": true, "ops": [{"op": "replace", "path": "/pstate/a", "value": 1}]}`,
		"test of nothing":     `X := {"allowed": true, "ops": [{"op": "test", "path": "/pstate/a", "value": 1}]}`,
		"two values for rule": `X := a if { some a in [true, false] }`,
	} {
		t.Run(name, func(t *testing.T) {
			p := compile(t, "package agent_policy\n"+text)
			for _, commit := range []bool{false, true} {
				if d, err := p.Decide(t.Context(), "X", map[string]any{}, commit); !errors.Is(err, errdefs.ErrInvalidArgument) {
					t.Errorf("%+v, %v", d, err)
				}
			}
			if len(p.state) != 0 {
				t.Errorf("state %v", p.state)
			}
		})
	}
}

func TestOperations(t *testing.T) {
	state, err := apply(map[string]any{"a": "1"}, []op{
		{Op: "test", Path: "/pstate/a", Value: "1"}, {Op: "copy", From: "/pstate/a", Path: "/pstate/b"}, {Op: "move", From: "/pstate/a", Path: "/pstate/c~1d~0"},
		{Op: "replace", Path: "/pstate/b", Value: true},
	})
	if err != nil || len(state) != 2 || state["b"] != true || state["c/d~"] != "1" {
		t.Errorf("%v %v", state, err)
	}
	if _, err := apply(nil, make([]op, maxOps+1)); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("too many: %v", err)
	}
	if _, err := apply(map[string]any{}, []op{{Op: "add", Path: "/pstate/a", Value: strings.Repeat("x", maxStateSize)}}); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("too large: %v", err)
	}
}

// FuzzCompile reads any text as a policy. One that can be enforced decides within its bounds, and never allows what it has no rule for.
func FuzzCompile(f *testing.F) {
	f.Add(idiom)
	f.Add("package agent_policy\ndefault AllowRequestsFailingPolicy := true")
	f.Add("package agent_policy\nExecProcessRequest { input.process.Args[_] == \"x\" }")
	f.Add("package agent_policy\nimport rego.v1\nreasons contains sprintf(\"%s\", [input]) if true")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := Compile(text)
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Fatal(err)
			}
			return
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		d, err := p.Decide(ctx, "ExecProcessRequest", map[string]any{"process": map[string]any{"Args": []any{"x"}}}, true)
		if (err != nil || !p.Has("ExecProcessRequest")) && d.Allowed {
			t.Errorf("allowed, with rule %t: %v", p.Has("ExecProcessRequest"), err)
		}
	})
}
