package bundle

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	ocipb "github.com/coffer-project/coffer/proto/oci"
)

func rebuildSeccomp(s *specs.LinuxSeccomp, d *dropped) *ocipb.LinuxSeccomp {
	if s == nil {
		return nil
	}
	// A listener would be a program on the host; system calls of the guest never reach it.
	d.note("linux.seccomp.listenerPath", s.ListenerPath != "" || s.ListenerMetadata != "")
	// The protocol has no field for it, and EPERM is what it means without.
	d.note("linux.seccomp.defaultErrnoRet", s.DefaultErrnoRet != nil && *s.DefaultErrnoRet != uint(unix.EPERM))

	out := &ocipb.LinuxSeccomp{DefaultAction: string(s.DefaultAction)}
	for _, arch := range s.Architectures {
		out.Architectures = append(out.Architectures, string(arch))
	}
	for _, flag := range s.Flags {
		out.Flags = append(out.Flags, string(flag))
	}
	for _, call := range s.Syscalls {
		rule := &ocipb.LinuxSyscall{Names: call.Names, Action: string(call.Action)}
		if call.ErrnoRet != nil {
			errno := uint32(*call.ErrnoRet)
			rule.Errnoret = &errno
		}
		for _, arg := range call.Args {
			rule.Args = append(rule.Args, &ocipb.LinuxSeccompArg{
				Index: uint64(arg.Index), Value: arg.Value, ValueTwo: arg.ValueTwo, Op: string(arg.Op),
			})
		}
		out.Syscalls = append(out.Syscalls, rule)
	}
	return out
}
