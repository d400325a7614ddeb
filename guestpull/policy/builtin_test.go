package policy

import (
	"errors"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	agentpb "github.com/coffer-project/coffer/proto/agent"
	"github.com/coffer-project/coffer/proto/cdh"
	guestpb "github.com/coffer-project/coffer/proto/guestpull/v1"
	healthpb "github.com/coffer-project/coffer/proto/health"
)

func TestBuiltin(t *testing.T) {
	for name, test := range map[string]struct {
		engine  Engine
		method  string
		request proto.Message
		denied  bool
	}{
		"create container":      {NewBuiltin(), "CreateContainer", &agentpb.CreateContainerRequest{}, false},
		"sandbox":               {NewBuiltin(), "CreateSandbox", &agentpb.CreateSandboxRequest{}, false},
		"sandbox with hooks":    {NewBuiltin(), "CreateSandbox", &agentpb.CreateSandboxRequest{GuestHookPath: "/hooks"}, true},
		"sandbox with modules":  {NewBuiltin(), "CreateSandbox", &agentpb.CreateSandboxRequest{KernelModules: []*agentpb.KernelModule{{Name: "x"}}}, true},
		"sandbox, other type":   {NewBuiltin(), "CreateSandbox", &agentpb.SetPolicyRequest{}, true},
		"exec":                  {NewBuiltin(), "ExecProcess", &agentpb.ExecProcessRequest{}, false},
		"exec, strict":          {NewStrict(), "ExecProcess", &agentpb.ExecProcessRequest{}, true},
		"policy":                {NewBuiltin(), "SetPolicy", &agentpb.SetPolicyRequest{}, true},
		"time":                  {NewBuiltin(), "SetGuestDateTime", &agentpb.SetGuestDateTimeRequest{}, true},
		"swap":                  {NewBuiltin(), "AddSwap", &agentpb.AddSwapRequest{}, true},
		"swap path":             {NewBuiltin(), "AddSwapPath", &agentpb.AddSwapPathRequest{}, true},
		"packet filter":         {NewBuiltin(), "SetIPTables", &agentpb.SetIPTablesRequest{}, true},
		"memory":                {NewBuiltin(), "MemHotplugByProbe", &agentpb.MemHotplugByProbeRequest{}, true},
		"method of the future":  {NewBuiltin(), "Frobnicate", &agentpb.SetPolicyRequest{}, true},
		"no method":             {NewBuiltin(), "", nil, true},
		"other spelling":        {NewBuiltin(), "createContainer", &agentpb.CreateContainerRequest{}, true},
		"another service's":     {NewBuiltin(), "grpc.AgentService/CreateContainer", &agentpb.CreateContainerRequest{}, true},
		"forward":               {NewBuiltin(), "Forward", &guestpb.ForwardRequest{Port: 8080}, false},
		"forward, strict":       {NewStrict(), "Forward", &guestpb.ForwardRequest{Port: 8080}, true},
		"forward, no port":      {NewBuiltin(), "Forward", &guestpb.ForwardRequest{}, true},
		"forward, port too big": {NewBuiltin(), "Forward", &guestpb.ForwardRequest{Port: 65536 + 22}, true},
		"forward, other type":   {NewBuiltin(), "Forward", &agentpb.SetPolicyRequest{}, true},
		"forward to the guest":  {NewBuiltin(), "Forward", &guestpb.ForwardRequest{Port: RESTPort}, true},
		"resource":              {NewStrict(), "GetResource", &cdh.GetResourceRequest{}, false},
		"diagnostics of a pull": {NewBuiltin(), "GetPullReport", &guestpb.GetPullReportRequest{}, false},
		"who a process is":      {NewBuiltin(), "GetContainerUser", &guestpb.GetContainerUserRequest{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			err := test.engine.Allow(t.Context(), test.method, test.request)
			if got := errors.Is(err, errdefs.ErrPermissionDenied); got != test.denied || (err != nil) != test.denied {
				t.Fatalf("got %v", err)
			}
			if test.denied && !strings.Contains(err.Error(), "is blocked by policy: ") {
				t.Errorf("reason: %v", err)
			}
		})
	}
}

// TestEveryMethodHasARule holds the table against the protocol: a new method must be decided about.
func TestEveryMethodHasARule(t *testing.T) {
	known := map[string]bool{"Forward": true, // a stream and not a method
		"GetResource": true, "GetToken": true, "GetEvidence": true} // asked inside the guest
	for _, file := range []protoreflect.FileDescriptor{
		agentpb.File_proto_agent_agent_proto, healthpb.File_proto_health_health_proto, guestpb.File_proto_guestpull_v1_diagnostics_proto,
		guestpb.File_proto_guestpull_v1_progress_proto,
		guestpb.File_proto_guestpull_v1_files_proto,
	} {
		services := file.Services()
		for i := range services.Len() {
			methods := services.Get(i).Methods()
			for j := range methods.Len() {
				name := string(methods.Get(j).Name())
				known[name] = true
				if _, ok := rules[name]; !ok {
					t.Errorf("no rule for %s", name)
				}
			}
		}
	}
	for name := range rules {
		if !known[name] {
			t.Errorf("rule for %s, which no service has", name)
		}
	}
}
