package policy

import (
	"context"
	"math"

	"google.golang.org/protobuf/proto"

	agentpb "github.com/coffer-project/coffer/proto/agent"
	"github.com/coffer-project/coffer/proto/agentpolicy"
	guestpb "github.com/coffer-project/coffer/proto/guestpull/v1"
)

// rule allows a method, or refuses it with the reason that it returns.
type rule func(request proto.Message) (reason string)

func allow(proto.Message) string { return "" }

func never(reason string) rule {
	return func(proto.Message) string { return reason }
}

// Builtin is the table that holds under every policy, and nothing else: alone it is for development. It lets the host run programs
// inside the containers, reach servers on the pod's loopback and choose what containers run.
type Builtin struct{}

// NewBuiltin returns the built-in table.
func NewBuiltin() *Builtin { return &Builtin{} }

// Allow implements [Engine]. A method that the table does not know is denied.
func (*Builtin) Allow(_ context.Context, method string, request proto.Message) error {
	r, known := rules[method]
	if !known {
		return deny(method, "this guest knows no such request")
	}
	if reason := r(request); reason != "" {
		return deny(method, reason)
	}
	return nil
}

// AllowContainer implements [Engine]: the table says nothing about what runs.
func (*Builtin) AllowContainer(context.Context, *agentpb.CreateContainerRequest, *agentpolicy.Facts) error {
	return nil
}

// RESTPort is where package rest listens on the pod's loopback, as elsewhere in Confidential Containers. No connection of the host gets there.
const RESTPort = 8006

// rules names every method that the guest serves.
var rules = map[string]rule{
	// Questions.
	"Check": allow, "Version": allow, "GetGuestDetails": allow, "GetMetrics": allow, "GetOOMEvent": allow, "StatsContainer": allow,
	"ListInterfaces": allow, "ListRoutes": allow, "GetDiagnosticData": allow, "GetVolumeStats": allow,
	"GetBootReport": allow, "GetPullReport": allow, "GetContainerUser": allow, "WaitPull": allow,
	// The pod's life.
	"CreateSandbox": sandboxRule, "DestroySandbox": allow,
	"CreateContainer": allow, "StartContainer": allow, "RemoveContainer": allow, "UpdateContainer": allow,
	"PauseContainer": allow, "ResumeContainer": allow, "SignalProcess": allow, "WaitProcess": allow,
	"ExecProcess": allow,
	// Not a call but a stream of its own, see package proto/forward.
	"Forward": forwardRule,
	// Questions of the pod's own programs, see package rest. The host cannot ask them.
	"GetResource": allow, "GetToken": allow, "GetEvidence": allow,
	// Streams. The host sees what it is given of a container's output: confidential output belongs on an encrypted connection.
	"ReadStdout": allow, "ReadStderr": allow, "WriteStdin": allow, "CloseStdin": allow, "TtyWinResize": allow,
	// What the pod needs of its surroundings.
	"UpdateInterface": allow, "UpdateRoutes": allow, "AddARPNeighbors": allow, "CopyFile": allow, "RemoveFiles": allow, "ReseedRandomDev": allow,
	"OnlineCPUMem": allow, "UpdateEphemeralMounts": allow, "RemoveStaleVirtiofsShareMounts": allow, "ResizeVolume": allow,
	"MemAgentMemcgSet": allow, "MemAgentCompactSet": allow,
	// What would change the guest itself.
	"SetPolicy":         never("the policy is fixed when the guest starts and cannot be replaced by the host"),
	"SetGuestDateTime":  never("the host must not choose the time by which certificates are judged"),
	"GetIPTables":       never("packet filters belong to the guest"),
	"SetIPTables":       never("packet filters belong to the guest"),
	"AddSwap":           never("memory of the guest must not be written to a disk of the host"),
	"AddSwapPath":       never("memory of the guest must not be written to a disk of the host"),
	"MemHotplugByProbe": never("the host must not add memory to a measured guest"),
}

// reasonOtherType is for what cannot happen unless a method is registered for another message than it has a rule for.
const reasonOtherType = "the request is not what its method takes"

func forwardRule(request proto.Message) string {
	r, ok := request.(*guestpb.ForwardRequest)
	switch {
	case !ok:
		return reasonOtherType
	case r.GetPort() == 0 || r.GetPort() > math.MaxUint16:
		return "it names no port"
	case r.GetPort() == RESTPort:
		return "the port belongs to the guest's endpoint for the pod's own programs"
	}
	return ""
}

func sandboxRule(request proto.Message) string {
	r, ok := request.(*agentpb.CreateSandboxRequest)
	switch {
	case !ok:
		return reasonOtherType
	case r.GetGuestHookPath() != "":
		return "hooks never run in this guest"
	case len(r.GetKernelModules()) > 0:
		return "the host must not choose kernel modules"
	}
	return ""
}
