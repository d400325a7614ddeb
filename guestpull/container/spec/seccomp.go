package spec

import (
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coffer-project/coffer/proto/lazyregexp"
	"github.com/coffer-project/coffer/proto/oci"
)

// Limits of a filter: twice what the largest profile in use has.
const (
	maxSyscallRules = 1024
	maxSyscallNames = 2048
	maxSyscallArgs  = 6
)

var (
	// SCMP_ACT_NOTIFY is missing: it would hand system calls of the workload to somebody outside.
	seccompActions = words(`SCMP_ACT_KILL SCMP_ACT_KILL_THREAD SCMP_ACT_KILL_PROCESS SCMP_ACT_TRAP SCMP_ACT_ERRNO SCMP_ACT_TRACE
		SCMP_ACT_ALLOW SCMP_ACT_LOG`)
	seccompOps   = words(`SCMP_CMP_NE SCMP_CMP_LT SCMP_CMP_LE SCMP_CMP_EQ SCMP_CMP_GE SCMP_CMP_GT SCMP_CMP_MASKED_EQ`)
	seccompFlags = words(`SECCOMP_FILTER_FLAG_TSYNC SECCOMP_FILTER_FLAG_LOG SECCOMP_FILTER_FLAG_SPEC_ALLOW`)
	syscallName  = lazyregexp.New(`^[a-z_][a-z0-9_]{0,63}$`)
)

func buildSeccomp(in *oci.LinuxSeccomp) (*specs.LinuxSeccomp, error) {
	if in == nil {
		return nil, nil
	}
	if !seccompActions[in.GetDefaultAction()] {
		return nil, refuse("seccomp default action %.64q is not allowed", in.GetDefaultAction())
	}
	out := &specs.LinuxSeccomp{DefaultAction: specs.LinuxSeccompAction(in.GetDefaultAction())}
	if len(in.GetArchitectures()) > 32 || len(in.GetFlags()) > 8 || len(in.GetSyscalls()) > maxSyscallRules {
		return nil, refuse("seccomp filter is too large")
	}
	for _, arch := range in.GetArchitectures() {
		if !strings.HasPrefix(arch, "SCMP_ARCH_") || len(arch) > 32 {
			return nil, refuse("seccomp architecture %.64q is unknown", arch)
		}
		out.Architectures = append(out.Architectures, specs.Arch(arch))
	}
	for _, flag := range in.GetFlags() {
		if !seccompFlags[flag] {
			return nil, refuse("seccomp flag %.64q is not allowed", flag)
		}
		out.Flags = append(out.Flags, specs.LinuxSeccompFlag(flag))
	}
	for _, s := range in.GetSyscalls() {
		rule, err := buildSyscall(s)
		if err != nil {
			return nil, err
		}
		out.Syscalls = append(out.Syscalls, rule)
	}
	return out, nil
}

func buildSyscall(in *oci.LinuxSyscall) (specs.LinuxSyscall, error) {
	if !seccompActions[in.GetAction()] {
		return specs.LinuxSyscall{}, refuse("seccomp action %.64q is not allowed", in.GetAction())
	}
	if len(in.GetNames()) > maxSyscallNames || len(in.GetArgs()) > maxSyscallArgs {
		return specs.LinuxSyscall{}, refuse("seccomp rule is too large")
	}
	for _, name := range in.GetNames() {
		if !syscallName.MatchString(name) {
			return specs.LinuxSyscall{}, refuse("seccomp system call name %.64q", name)
		}
	}
	out := specs.LinuxSyscall{Names: slices.Clone(in.GetNames()), Action: specs.LinuxSeccompAction(in.GetAction())}
	if in.Errnoret != nil {
		errno := uint(in.GetErrnoret())
		out.ErrnoRet = &errno
	}
	for _, a := range in.GetArgs() {
		if !seccompOps[a.GetOp()] || a.GetIndex() > 5 {
			return specs.LinuxSyscall{}, refuse("seccomp condition %.64q on argument %d", a.GetOp(), a.GetIndex())
		}
		out.Args = append(out.Args, specs.LinuxSeccompArg{Index: uint(a.GetIndex()), Value: a.GetValue(), ValueTwo: a.GetValueTwo(),
			Op: specs.LinuxSeccompOperator(a.GetOp())})
	}
	return out, nil
}
