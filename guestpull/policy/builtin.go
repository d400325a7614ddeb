package policy

import (
	"context"
	"math"

	"google.golang.org/protobuf/proto"

	agentpb "github.com/coffer-project/coffer/proto/agent"
	guestpb "github.com/coffer-project/coffer/proto/guestpull/v1"
)

// rule allows a method, or refuses it with the reason that it returns.
type rule func(b *Builtin, request proto.Message) (reason string)

func allow(*Builtin, proto.Message) string { return "" }

func never(reason string) rule {
	return func(*Builtin, proto.Message) string { return reason }
}

// Builtin is the policy of a guest whose measured document brings none.
type Builtin struct {
	exec, forward bool
}

// Option changes a Builtin.
type Option func(*Builtin)

// WithoutExec denies ExecProcess. Exec is allowed unless this is given, which is a default for development: whoever controls the host
// can then run programs inside the containers and read what they hold. It will turn round once a policy can come with the measured
// document, which can then allow exec again, per container.
func WithoutExec() Option { return func(b *Builtin) { b.exec = false } }

// WithoutForward denies Forward. It is allowed unless this is given, because kubectl port-forward needs it: the host can then reach
// servers on the pod's loopback, which a workload may have put there to keep them to itself.
func WithoutForward() Option { return func(b *Builtin) { b.forward = false } }

// NewBuiltin returns the built-in policy.
func NewBuiltin(opts ...Option) *Builtin {
	b := &Builtin{exec: true, forward: true}
	for _, opt := range opts {
		opt(b)
	}
	return b
}

// Allow implements [Engine]. A method that the table does not know is denied.
func (b *Builtin) Allow(_ context.Context, method string, request proto.Message) error {
	r, known := rules[method]
	if !known {
		return deny(method, "this guest knows no such request")
	}
	if reason := r(b, request); reason != "" {
		return deny(method, reason)
	}
	return nil
}

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
	"ExecProcess": execRule,
	// Not a call but a stream of its own, see package proto/forward.
	"Forward": forwardRule,
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

func execRule(b *Builtin, _ proto.Message) string {
	if !b.exec {
		return "exec is switched off in this guest"
	}
	return ""
}

func forwardRule(b *Builtin, request proto.Message) string {
	r, ok := request.(*guestpb.ForwardRequest)
	switch {
	case !ok:
		return "the request is not what its method takes"
	case !b.forward:
		return "connections to the pod's loopback are switched off in this guest"
	case r.GetPort() == 0 || r.GetPort() > math.MaxUint16:
		return "it names no port"
	}
	return ""
}

func sandboxRule(_ *Builtin, request proto.Message) string {
	r, ok := request.(*agentpb.CreateSandboxRequest)
	switch {
	case !ok:
		return "the request is not what its method takes"
	case r.GetGuestHookPath() != "":
		return "hooks never run in this guest"
	case len(r.GetKernelModules()) > 0:
		return "the host must not choose kernel modules"
	}
	return ""
}
