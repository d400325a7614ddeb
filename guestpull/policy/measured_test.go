package policy

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"

	"github.com/coffer-project/coffer/proto/aa"
	agentpb "github.com/coffer-project/coffer/proto/agent"
	"github.com/coffer-project/coffer/proto/agentpolicy"
	"github.com/coffer-project/coffer/proto/cdh"
	guestpb "github.com/coffer-project/coffer/proto/guestpull/v1"
	"github.com/coffer-project/coffer/proto/oci"
)

const generous = `package agent_policy
default SetPolicyRequest := true
default CreateSandboxRequest := true
default AddSwapRequest := true
default ExecProcessRequest := false
default StatsContainerRequest := true
ReadStreamRequest if input.coffer.method == "ReadStderr"
reasons contains "output is confidential" if input.coffer.method == "ReadStdout"
CreateContainerRequest := {"allowed": true, "ops": [{"op": "add", "path": "/pstate/made", "value": true}]} if not data.pstate.made
StartContainerRequest if data.pstate.made
GetResourceRequest if input.ResourcePath == "kbs:///default/secret/own"
`

func measured(t *testing.T, text string) *Measured {
	t.Helper()
	m, err := NewMeasured(text)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestMeasured: both the table and the policy must allow.
func TestMeasured(t *testing.T) {
	m := measured(t, generous)
	for name, tc := range map[string]struct {
		method  string
		request proto.Message
		reason  string // empty: allowed
	}{
		"both allow":          {"StatsContainer", &agentpb.StatsContainerRequest{}, ""},
		"table denies":        {"SetPolicy", &agentpb.SetPolicyRequest{}, "cannot be replaced by the host"},
		"table denies swap":   {"AddSwap", &agentpb.AddSwapRequest{}, "must not be written to a disk"},
		"table, kernel":       {"CreateSandbox", &agentpb.CreateSandboxRequest{KernelModules: []*agentpb.KernelModule{{}}}, "kernel modules"},
		"policy denies":       {"ExecProcess", &agentpb.ExecProcessRequest{}, "rule ExecProcessRequest of the measured policy does not hold"},
		"policy says nothing": {"PauseContainer", &agentpb.PauseContainerRequest{}, "has no rule PauseContainerRequest"},
		"one stream":          {"ReadStderr", &agentpb.ReadStreamRequest{}, ""},
		"other stream":        {"ReadStdout", &agentpb.ReadStreamRequest{}, "blocked by policy: output is confidential"},
		"version":             {"Version", &agentpb.GetMetricsRequest{}, ""},
		"ours, a report":      {"GetPullReport", &guestpb.GetPullReportRequest{}, ""},
		"ours, a connection":  {"Forward", &guestpb.ForwardRequest{Port: 80}, "has no rule ForwardRequest"},
		"own resource":        {"GetResource", &cdh.GetResourceRequest{ResourcePath: "kbs:///default/secret/own"}, ""},
		"another's resource":  {"GetResource", &cdh.GetResourceRequest{ResourcePath: "kbs:///default/secret/other"}, "rule GetResourceRequest"},
		"token, no rule":      {"GetToken", &aa.GetTokenRequest{}, ""},
		"no such request":     {"Frobnicate", &agentpb.SetPolicyRequest{}, "knows no such request"},
	} {
		err := m.Allow(t.Context(), tc.method, tc.request)
		if tc.reason == "" && err != nil || tc.reason != "" && (!errors.Is(err, errdefs.ErrPermissionDenied) || !strings.Contains(err.Error(), tc.reason)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	own := measured(t, "package agent_policy\ndefault GetPullReportRequest := false\nForwardRequest if input.port == 80")
	if err := own.Allow(t.Context(), "GetPullReport", &guestpb.GetPullReportRequest{}); !errors.Is(err, errdefs.ErrPermissionDenied) {
		t.Errorf("a rule of its own for our request: %v", err)
	}
	if err := own.Allow(t.Context(), "Forward", &guestpb.ForwardRequest{Port: 80}); err != nil {
		t.Error(err)
	}
}

// TestPolicyOfKatasTools: whoever uses one with this shim is told what is wrong, and nobody else is.
func TestPolicyOfKatasTools(t *testing.T) {
	const kata = "package agent_policy\npolicy_data := {\"containers\": []}\ndefault CreateContainerRequest := false\ndefault ExecProcessRequest := false\n"
	request := func(annotations map[string]string) *agentpb.CreateContainerRequest {
		return &agentpb.CreateContainerRequest{OCI: &oci.Spec{Annotations: annotations}}
	}
	for name, tc := range map[string]struct {
		policy      string
		annotations map[string]string
		told        bool
	}{
		"our shim":           {kata, map[string]string{"io.kubernetes.cri.container-type": "container"}, true},
		"Kata's shim":        {kata, map[string]string{"io.katacontainers.pkg.oci.container_type": "pod_container"}, false},
		"written by hand":    {"package agent_policy\ndefault CreateContainerRequest := false", nil, false},
		"one with reasons":   {kata + "reasons contains \"so\" if true\n", nil, false},
		"silent with reason": {kata + "reasons contains \"so\" if false\n", nil, false},
	} {
		err := measured(t, tc.policy).AllowContainer(t.Context(), request(tc.annotations), &agentpolicy.Facts{Stage: agentpolicy.StageRequest})
		if !errors.Is(err, errdefs.ErrPermissionDenied) || strings.Contains(err.Error(), "make the policy with cofferctl policy generate") != tc.told {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := measured(t, kata).Allow(t.Context(), "ExecProcess", &agentpb.ExecProcessRequest{}); strings.Contains(err.Error(), "Kata") {
		t.Errorf("exec: %v", err)
	}
}

// TestMeasuredState: only the second stage of a creation counts, and the order of calls does.
func TestMeasuredState(t *testing.T) {
	m := measured(t, generous)
	request := &agentpb.CreateContainerRequest{ContainerId: "c1"}
	start := func() error {
		return m.Allow(t.Context(), "StartContainer", &agentpb.StartContainerRequest{ContainerId: "c1"})
	}
	at := func(stage string) error {
		return m.AllowContainer(t.Context(), request, &agentpolicy.Facts{Stage: stage})
	}
	if start() == nil {
		t.Error("started before it was created")
	}
	if err := errors.Join(at(agentpolicy.StageRequest), at(agentpolicy.StageRequest)); err != nil {
		t.Error(err)
	}
	if start() == nil {
		t.Error("started before it was created in full")
	}
	if err := errors.Join(at(agentpolicy.StageContainer), start()); err != nil {
		t.Error(err)
	}
	if at(agentpolicy.StageRequest) == nil || at(agentpolicy.StageContainer) == nil {
		t.Error("a replay is allowed")
	}
}

func TestMeasuredCannotDecide(t *testing.T) {
	m := measured(t, "package agent_policy\nStatsContainerRequest := 1")
	if err := m.Allow(t.Context(), "StatsContainer", &agentpb.StatsContainerRequest{}); !errors.Is(err, errdefs.ErrPermissionDenied) {
		t.Error(err)
	}
	huge := &agentpb.CreateContainerRequest{ExecId: strings.Repeat("x", 5<<20)}
	if err := measured(t, generous).AllowContainer(t.Context(), huge, &agentpolicy.Facts{}); !errors.Is(err, errdefs.ErrPermissionDenied) {
		t.Error(err)
	}
	if _, err := NewMeasured("package policy"); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Error(err)
	}
}

// TestLate: until the document is known only the agent's own questions are answered.
func TestLate(t *testing.T) {
	late := NewLate()
	if err := late.Allow(t.Context(), "Version", &agentpb.GetMetricsRequest{}); err != nil {
		t.Error(err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := late.Allow(gone, "CreateSandbox", &agentpb.CreateSandboxRequest{}); !errors.Is(err, context.Canceled) {
		t.Errorf("decided without a document: %v", err)
	}
	if err := late.AllowContainer(gone, usual(), &agentpolicy.Facts{}); !errors.Is(err, context.Canceled) {
		t.Errorf("decided without a document: %v", err)
	}
	waiting := make(chan error)
	go func() { waiting <- late.Allow(t.Context(), "ExecProcess", &agentpb.ExecProcessRequest{}) }()
	late.Set(NewStrict())
	if err := <-waiting; !errors.Is(err, errdefs.ErrPermissionDenied) {
		t.Errorf("the call that waited: %v", err)
	}
	late.Set(NewDenied(errors.New("line 3: nonsense")))
	for _, method := range []string{"CreateSandbox", "UpdateInterface", "StatsContainer", "CopyFile"} {
		err := late.Allow(t.Context(), method, &agentpb.CreateSandboxRequest{})
		if !errors.Is(err, errdefs.ErrPermissionDenied) || !strings.Contains(err.Error(), "line 3: nonsense") {
			t.Errorf("%s of a faulty document: %v", method, err)
		}
	}
	if err := late.Allow(t.Context(), "DestroySandbox", &agentpb.DestroySandboxRequest{}); err != nil {
		t.Error(err)
	}
	if err := late.AllowContainer(t.Context(), usual(), &agentpolicy.Facts{}); !errors.Is(err, errdefs.ErrPermissionDenied) {
		t.Error(err)
	}
}
