package spec

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"

	"github.com/coffer-project/coffer/proto/oci"
)

func options() Options {
	return Options{
		ContainerID: "c1", Rootfs: "/run/kata-containers/c1/rootfs", CgroupPath: "/coffer/c1", UTS: "/ns/uts", IPC: "/ns/ipc",
		AllowSource: func(p string) bool { return strings.HasPrefix(p, "/run/kata-containers/shared/containers/") },
	}
}

// honest is what an orchestrator asks for.
func honest() *oci.Spec {
	caps := []string{"CAP_KILL", "CAP_CHOWN", "CAP_KILL"}
	errno := uint32(38)
	return &oci.Spec{
		Version: "1.1.0", Root: &oci.Root{Path: "/run/kata-containers/c1/rootfs", Readonly: true}, Hostname: "host",
		Annotations: map[string]string{"org.systemd.property.X": "y"},
		Process: &oci.Process{
			Terminal: true, ConsoleSize: &oci.Box{Height: 25, Width: 80}, Args: []string{"/bin/app"}, Env: []string{"A=b"}, Cwd: "/srv",
			User:         &oci.User{UID: 7, GID: 8, AdditionalGids: []uint32{9}},
			Capabilities: &oci.LinuxCapabilities{Bounding: caps, Permitted: caps, Ambient: []string{"CAP_KILL"}},
			Rlimits:      []*oci.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 10, Soft: 5}}, NoNewPrivileges: true, OOMScoreAdj: 500,
			ApparmorProfile: "cri-containerd.apparmor.d", SelinuxLabel: "x",
		},
		Mounts: []*oci.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"mode=755", "size=65536k"}},
			{Destination: "/etc/hosts", Type: "bind", Source: "/run/kata-containers/shared/containers/c1-hosts", Options: []string{"ro"}},
		},
		Linux: &oci.Linux{
			CgroupsPath: "/kubepods/whatever",
			Namespaces:  []*oci.LinuxNamespace{{Type: "pid"}, {Type: "network"}, {Type: "mount"}},
			Sysctl:      map[string]string{"kernel.shm_rmid_forced": "1", "net.core.somaxconn": "99"},
			Resources: &oci.LinuxResources{
				Devices: []*oci.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}},
				Memory:  &oci.LinuxMemory{Limit: 1 << 20}, CPU: &oci.LinuxCPU{Shares: 5, Cpus: "64-127"}, Pids: &oci.LinuxPids{Limit: 3},
				HugepageLimits: []*oci.LinuxHugepageLimit{{Pagesize: "2MB"}},
			},
			Seccomp: &oci.LinuxSeccomp{
				DefaultAction: "SCMP_ACT_ERRNO", Architectures: []string{"SCMP_ARCH_X86_64"},
				Syscalls: []*oci.LinuxSyscall{{Names: []string{"read"}, Action: "SCMP_ACT_ALLOW", Errnoret: &errno,
					Args: []*oci.LinuxSeccompArg{{Index: 1, Value: 2, Op: "SCMP_CMP_EQ"}}}},
			},
			MaskedPaths: []string{"/proc/kcore"}, ReadonlyPaths: []string{"/proc/sys"},
		},
	}
}

func TestBuild(t *testing.T) {
	s, err := Build(honest(), options())
	if err != nil {
		t.Fatal(err)
	}
	if s.Linux.CgroupsPath != "/coffer/c1" || s.Annotations != nil || s.Hooks != nil || s.Hostname != "" {
		t.Errorf("the host's choices came through: %+v", s)
	}
	if s.Process.ApparmorProfile != "" || s.Process.SelinuxLabel != "" {
		t.Error("labels of the host's kernel came through")
	}
	wantNS := []specs.LinuxNamespace{{Type: "mount"}, {Type: "cgroup"}, {Type: "uts", Path: "/ns/uts"}, {Type: "ipc", Path: "/ns/ipc"}, {Type: "pid"}}
	if !reflect.DeepEqual(s.Linux.Namespaces, wantNS) {
		t.Errorf("namespaces: %+v", s.Linux.Namespaces)
	}
	if r := s.Linux.Resources; len(r.Devices) != 1 || r.Devices[0].Allow || r.CPU.Cpus != "" || *r.Memory.Limit != 1<<20 || r.HugepageLimits != nil {
		t.Errorf("resources: %+v", r)
	}
	if got := TakeNetSysctls(s); !reflect.DeepEqual(got, map[string]string{"net.core.somaxconn": "99"}) || len(s.Linux.Sysctl) != 1 {
		t.Errorf("sysctls: %v, kept %v", got, s.Linux.Sysctl)
	}
	if c := s.Process.Capabilities; !reflect.DeepEqual(c.Bounding, []string{"CAP_CHOWN", "CAP_KILL"}) || len(c.Ambient) != 0 {
		t.Errorf("capabilities: %+v", c) // ambient was not inheritable
	}
	if m := s.Mounts[2]; m.Type != Bind || !reflect.DeepEqual(m.Options, []string{"ro", "rbind", "rprivate"}) {
		t.Errorf("bind mount: %+v", m)
	}
}

// TestRefused is the list of what a hostile host may try in a specification.
func TestRefused(t *testing.T) {
	mnt := func(m *oci.Mount) func(*oci.Spec) {
		return func(s *oci.Spec) { s.Mounts = append(s.Mounts, m) }
	}
	for name, change := range map[string]func(*oci.Spec){
		"no process":             func(s *oci.Spec) { s.Process = nil },
		"no root":                func(s *oci.Spec) { s.Root = nil },
		"no linux":               func(s *oci.Spec) { s.Linux = nil },
		"other root":             func(s *oci.Spec) { s.Root.Path = "/" },
		"root of another":        func(s *oci.Spec) { s.Root.Path = "/run/kata-containers/c2/rootfs" },
		"root with dots":         func(s *oci.Spec) { s.Root.Path = "/run/kata-containers/c1/../c1/rootfs" },
		"hook":                   func(s *oci.Spec) { s.Hooks = &oci.Hooks{CreateRuntime: []*oci.Hook{{Path: "/bin/sh"}}} },
		"start hook":             func(s *oci.Spec) { s.Hooks = &oci.Hooks{StartContainer: []*oci.Hook{{Path: "/bin/sh"}}} },
		"windows":                func(s *oci.Spec) { s.Windows = &oci.Windows{} },
		"zero byte":              func(s *oci.Spec) { s.Process.Args = []string{"a\x00b"} },
		"zero byte in env":       func(s *oci.Spec) { s.Process.Env = []string{"A=\x00"} },
		"env without a value":    func(s *oci.Spec) { s.Process.Env = []string{"A"} },
		"env without a name":     func(s *oci.Spec) { s.Process.Env = []string{"=b"} },
		"endless env":            func(s *oci.Spec) { s.Process.Env = []string{"A=" + strings.Repeat("a", maxText)} },
		"relative cwd":           func(s *oci.Spec) { s.Process.Cwd = "srv" },
		"cwd with dots":          func(s *oci.Spec) { s.Process.Cwd = "/srv/../.." },
		"unknown capability":     func(s *oci.Spec) { s.Process.Capabilities.Bounding = []string{"CAP_EVERYTHING"} },
		"unknown rlimit":         func(s *oci.Spec) { s.Process.Rlimits[0].Type = "RLIMIT_X" },
		"oom score":              func(s *oci.Spec) { s.Process.OOMScoreAdj = -1001 },
		"too many groups":        func(s *oci.Spec) { s.Process.User.AdditionalGids = make([]uint32, maxGroups+1) },
		"user namespace":         func(s *oci.Spec) { s.Linux.Namespaces = append(s.Linux.Namespaces, &oci.LinuxNamespace{Type: "user"}) },
		"time namespace":         func(s *oci.Spec) { s.Linux.Namespaces = append(s.Linux.Namespaces, &oci.LinuxNamespace{Type: "time"}) },
		"namespace of the agent": func(s *oci.Spec) { s.Linux.Namespaces[0].Path = "/proc/1/ns/pid" },
		"id mappings":            func(s *oci.Spec) { s.Linux.UIDMappings = []*oci.LinuxIDMapping{{Size: 1}} },
		"sysctl of the kernel":   func(s *oci.Spec) { s.Linux.Sysctl["kernel.core_pattern"] = "|/bin/sh" },
		"forwarding":             func(s *oci.Spec) { s.Linux.Sysctl["net.ipv4.ip_forward"] = "1" },
		"sysctl with a line":     func(s *oci.Spec) { s.Linux.Sysctl["kernel.shmmax"] = "1\n2" },
		"disk":                   func(s *oci.Spec) { s.Linux.Devices = []*oci.LinuxDevice{{Path: "/dev/x", Type: "b", Major: 254}} },
		"kernel memory": func(s *oci.Spec) {
			s.Linux.Devices = []*oci.LinuxDevice{{Path: "/dev/mem", Type: "c", Major: 1, Minor: 1}}
		},
		"device path":             func(s *oci.Spec) { s.Linux.Devices = []*oci.LinuxDevice{{Path: "../x", Type: "c", Major: 1, Minor: 3}} },
		"cache class":             func(s *oci.Spec) { s.Linux.IntelRdt = &oci.LinuxIntelRdt{} },
		"shared propagation":      func(s *oci.Spec) { s.Linux.RootfsPropagation = "rshared" },
		"masked path":             func(s *oci.Spec) { s.Linux.MaskedPaths = []string{"proc"} },
		"seccomp notify":          func(s *oci.Spec) { s.Linux.Seccomp.DefaultAction = "SCMP_ACT_NOTIFY" },
		"seccomp notify one call": func(s *oci.Spec) { s.Linux.Seccomp.Syscalls[0].Action = "SCMP_ACT_NOTIFY" },
		"seccomp flag":            func(s *oci.Spec) { s.Linux.Seccomp.Flags = []string{"SECCOMP_FILTER_FLAG_NEW_LISTENER"} },
		"seccomp operator":        func(s *oci.Spec) { s.Linux.Seccomp.Syscalls[0].Args[0].Op = "X" },
		"huge pages":              func(s *oci.Spec) { s.Linux.Resources.HugepageLimits[0].Pagesize = "../x" },
		"memory":                  func(s *oci.Spec) { s.Linux.Resources.Memory.Limit = -2 },
		"mount over root":         mnt(&oci.Mount{Destination: "/", Type: "tmpfs", Source: "tmpfs"}),
		"mount destination":       mnt(&oci.Mount{Destination: "/a/../b", Type: "tmpfs", Source: "tmpfs"}),
		"host file system":        mnt(&oci.Mount{Destination: "/a", Type: "virtiofs", Source: "kataShared"}),
		"block device":            mnt(&oci.Mount{Destination: "/a", Type: "ext4", Source: "/dev/vda"}),
		"overlay":                 mnt(&oci.Mount{Destination: "/a", Type: "overlay", Source: "overlay", Options: []string{"lowerdir=/"}}),
		"proc elsewhere":          mnt(&oci.Mount{Destination: "/a", Type: "proc", Source: "proc"}),
		"bind of the guest":       mnt(&oci.Mount{Destination: "/a", Type: "bind", Source: "/"}),
		"bind of another image":   mnt(&oci.Mount{Destination: "/a", Type: "bind", Source: "/run/kata-containers/c2/rootfs"}),
		"bind by option":          mnt(&oci.Mount{Destination: "/a", Type: "tmpfs", Source: "/etc", Options: []string{"rbind"}}),
		"bind with dots":          mnt(&oci.Mount{Destination: "/a", Type: "bind", Source: "/run/kata-containers/shared/containers/../../../../etc"}),
		"shared mount":            mnt(&oci.Mount{Destination: "/a", Type: "tmpfs", Source: "tmpfs", Options: []string{"rshared"}}),
		"id-mapped mount":         mnt(&oci.Mount{Destination: "/a", Type: "bind", Source: "/run/kata-containers/shared/containers/x", Options: []string{"idmap"}}),
		"option in option":        mnt(&oci.Mount{Destination: "/a", Type: "tmpfs", Source: "tmpfs", Options: []string{"size=1,exec"}}),
		"too many mounts":         func(s *oci.Spec) { s.Mounts = make([]*oci.Mount, maxMounts+1) },
	} {
		t.Run(name, func(t *testing.T) {
			in := honest()
			change(in)
			if _, err := Build(in, options()); !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestPropagation: every bind mount has one propagation, and only who may mount gets a shared one, where that is allowed.
func TestPropagation(t *testing.T) {
	const volume, file = "/run/kata-containers/sandbox/ephemeral/v", "/run/kata-containers/shared/containers/c1-x"
	for name, test := range map[string]struct {
		options, source, root, want, wantRoot string
		unprivileged, mapped                  bool
		wantErr                               error
	}{
		"none":               {options: "rbind", source: file, want: "rbind rprivate"},
		"private":            {options: "rbind rprivate", source: volume, want: "rbind rprivate"},
		"part of the tree":   {options: "bind private ro", source: volume, want: "bind ro rprivate"},
		"unbindable":         {options: "rbind unbindable", source: volume, want: "rbind rprivate"},
		"slave":              {options: "rbind rslave", source: volume, root: "rslave", want: "rbind rslave", wantRoot: "rslave"},
		"slave, no root":     {options: "rbind slave", source: volume, want: "rbind rslave"},
		"slave, other root":  {options: "rbind slave", source: volume, root: "private", want: "rbind rslave", wantRoot: "rslave"},
		"slave, anybody":     {options: "rbind rslave", source: file, unprivileged: true, mapped: true, want: "rbind rslave"},
		"shared":             {options: "rbind rshared", source: volume, root: "rshared", want: "rbind rshared", wantRoot: "rshared"},
		"shared, other root": {options: "rbind shared", source: volume, root: "rslave", want: "rbind rshared", wantRoot: "rshared"},
		"last one counts":    {options: "rshared rbind rprivate", source: volume, want: "rbind rprivate"},
		"shared file":        {options: "rbind rshared", source: file, wantErr: errdefs.ErrInvalidArgument},
		"unprivileged":       {options: "rbind rshared", source: volume, unprivileged: true, wantErr: errdefs.ErrInvalidArgument},
		"in a namespace":     {options: "rbind rshared", source: volume, mapped: true, wantErr: errdefs.ErrInvalidArgument},
		"root alone":         {options: "rbind", source: volume, root: "rshared", wantErr: errdefs.ErrInvalidArgument},
		"unknown root":       {options: "rbind", source: volume, root: "everything", wantErr: errdefs.ErrInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			in, o := honest(), options()
			o.AllowSource = func(string) bool { return true }
			o.AllowShared = func(path string) bool { return path == volume }
			in.Mounts = []*oci.Mount{{Destination: "/v", Type: "bind", Source: test.source, Options: strings.Fields(test.options)}}
			in.Linux.RootfsPropagation = test.root
			if !test.unprivileged {
				in.Process.Capabilities.Bounding = append(in.Process.Capabilities.Bounding, "CAP_SYS_ADMIN")
			}
			if test.mapped {
				in.Linux.Namespaces = append(in.Linux.Namespaces, &oci.LinuxNamespace{Type: "user"})
				in.Linux.UIDMappings = []*oci.LinuxIDMapping{{HostID: 1 << 20, Size: 1 << 16}}
				in.Linux.GIDMappings = in.Linux.UIDMappings
				var err error
				if o.Users, err = MappedUsers(in.Linux); err != nil {
					t.Fatal(err)
				}
				o.User = "/ns/user"
			}
			s, err := Build(in, o)
			if !errors.Is(err, test.wantErr) {
				t.Fatalf("got %v", err)
			}
			if err != nil {
				return
			}
			if got := strings.Join(s.Mounts[0].Options, " "); got != test.want || s.Linux.RootfsPropagation != test.wantRoot {
				t.Errorf("options %q, root %q", got, s.Linux.RootfsPropagation)
			}
		})
	}
}

func FuzzBuild(f *testing.F) {
	seed, err := proto.Marshal(honest())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, data []byte) {
		var in oci.Spec
		if proto.Unmarshal(data, &in) != nil {
			return
		}
		s, err := Build(&in, options())
		if err != nil {
			return
		}
		if s.Root.Path != options().Rootfs || s.Hooks != nil || s.Linux.CgroupsPath != "/coffer/c1" {
			t.Errorf("not the guest's own: %+v", s)
		}
		for _, m := range s.Mounts {
			if m.Type == Bind && !options().AllowSource(m.Source) {
				t.Errorf("bind of %q", m.Source)
			}
		}
		for _, ns := range s.Linux.Namespaces {
			if ns.Path != "" && !strings.HasPrefix(ns.Path, "/ns/") {
				t.Errorf("namespace %+v", ns)
			}
		}
	})
}
