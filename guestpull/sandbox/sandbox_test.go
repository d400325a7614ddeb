package sandbox

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/guestpull/container"
	"github.com/coffer-project/coffer/guestpull/container/cgroup"
	"github.com/coffer-project/coffer/guestpull/container/spec"
	"github.com/coffer-project/coffer/guestpull/sandbox/holder"
	"github.com/coffer-project/coffer/guestpull/scratch"
	"github.com/coffer-project/coffer/integration/require"
	agentpb "github.com/coffer-project/coffer/proto/agent"
)

func newSandbox(t *testing.T) *Sandbox {
	t.Helper()
	return newSandboxWith(t, "")
}

// newSandboxWith has a scratch disk that is mounted at disk; empty: none.
func newSandboxWith(t *testing.T, disk string) *Sandbox {
	t.Helper()
	base := t.TempDir()
	place := scratch.NewPlace()
	place.Set(disk, nil)
	s, err := New(Options{
		Scratch: place,
		Base:    base, ResolvConf: filepath.Join(base, "etc/resolv.conf"), Sysctls: filepath.Join(base, "sys"), Cgroups: cgroup.Root(t.TempDir()),
		Holder: func() (container.Process, error) { return start(exec.Command("sleep", "1000")) },
		UserHolder: func(users spec.Users) (container.Process, error) {
			cmd, err := holder.UserCommand("/bin/sleep", users)
			if err != nil {
				return container.Process{}, err
			}
			cmd.Args = []string{"sleep", "1000"}
			return start(cmd)
		},
	})
	must(t, err)
	t.Cleanup(func() { must(t, s.Destroy(context.Background())) })
	return s
}

func start(cmd *exec.Cmd) (container.Process, error) {
	if err := cmd.Start(); err != nil {
		return container.Process{}, err
	}
	exit := make(chan int, 1)
	go func() { _ = cmd.Wait(); exit <- 137 }()
	return container.Process{PID: cmd.Process.Pid, Exit: exit}, nil
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func isMount(t *testing.T, path string) bool {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	return strings.Contains(string(data), " "+path+" ")
}

func TestOneSandboxInALife(t *testing.T) {
	require.Root(t)
	s := newSandbox(t)
	if _, err := s.Namespaces(false, spec.Users{}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("namespaces of no sandbox: %v", err)
	}
	if err := s.Mount(t.Context(), &agentpb.Storage{}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("volume of no sandbox: %v", err)
	}
	must(t, s.Create(t.Context(), &agentpb.CreateSandboxRequest{SandboxId: "pod", Hostname: "name", Dns: []string{"10.0.0.10", "search a.b c"}, SandboxPidns: true}))
	if err := s.Create(t.Context(), &agentpb.CreateSandboxRequest{}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second create: %v", err)
	}
	conf, err := os.ReadFile(s.ResolvConf)
	must(t, err)
	if string(conf) != "nameserver 10.0.0.10\nsearch a.b c\n" {
		t.Errorf("resolv.conf: %q", conf)
	}
	ns, err := s.Namespaces(true, spec.Users{})
	must(t, err)
	own, err := os.Readlink("/proc/self/ns/uts")
	must(t, err)
	var st unix.Stat_t
	must(t, unix.Stat(ns.UTS, &st))
	if strings.Contains(own, "["+itoa(st.Ino)+"]") {
		t.Error("the pod has the agent's UTS namespace")
	}
	if private, err := s.Namespaces(false, spec.Users{}); err != nil || private.PID != "" || private.UTS != ns.UTS {
		t.Errorf("private: %+v, %v", private, err)
	}
	shm := filepath.Join(s.Base, "sandbox/shm")
	if !isMount(t, shm) {
		t.Error("no shared memory")
	}
	oom := make(chan error, 1)
	go func() { _, err := s.NextOOM(context.Background()); oom <- err }()
	must(t, s.Destroy(t.Context()))
	must(t, s.Destroy(t.Context()))
	if err := <-oom; !errdefs.IsNotFound(err) {
		t.Errorf("wait for an event of no sandbox: %v", err)
	}
	if isMount(t, shm) || isMount(t, ns.UTS) {
		t.Error("mounts are left")
	}
	if err := s.Create(t.Context(), &agentpb.CreateSandboxRequest{}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("create after destroy: %v", err)
	}
}

// TestUserNamespace: its containers get a set of namespaces that it owns, made once.
func TestUserNamespace(t *testing.T) {
	require.Root(t)
	s := newSandbox(t)
	must(t, s.Create(t.Context(), &agentpb.CreateSandboxRequest{Hostname: "mapped", SandboxPidns: true}))
	var users spec.Users
	users.UID.HostID, users.UID.Size, users.GID.HostID, users.GID.Size = 1000, 100000, 2000, 100000
	ns, err := s.Namespaces(true, users)
	must(t, err)
	if again, err := s.Namespaces(true, users); err != nil || again != ns {
		t.Errorf("the second container gets %+v, %v, the first %+v", again, err, ns)
	}
	if private, err := s.Namespaces(false, users); err != nil || private.PID != "" || private.User != ns.User {
		t.Errorf("private: %+v, %v", private, err)
	}
	if plain, err := s.Namespaces(true, spec.Users{}); err != nil || plain.User != "" || plain.IPC == ns.IPC {
		t.Errorf("without mappings: %+v, %v", plain, err)
	}
	other := users
	other.UID.HostID++
	if _, err := s.Namespaces(true, other); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("other mappings: %v", err)
	}
	out, err := exec.Command("nsenter", "--user="+ns.User, "--uts="+ns.UTS, "sh", "-c", "hostname; id -u; cat /proc/self/uid_map /proc/self/gid_map").CombinedOutput()
	must(t, err)
	if got, want := strings.Join(strings.Fields(string(out)), " "), "mapped 0 0 1000 100000 0 2000 100000"; got != want {
		t.Errorf("in the namespace: %q, want %q", got, want)
	}
}

func TestFailedCreateLeavesNothing(t *testing.T) {
	require.Root(t)
	s := newSandbox(t)
	bad := &agentpb.CreateSandboxRequest{SandboxPidns: true, Storages: []*agentpb.Storage{
		{Driver: "ephemeral", Fstype: "tmpfs", MountPoint: s.Base + "/sandbox/one"},
		{Driver: "virtio-fs", Source: "kataShared", MountPoint: s.Base + "/shared/containers"},
	}}
	if err := s.Create(t.Context(), bad); !errdefs.IsInvalidArgument(err) {
		t.Errorf("create: %v", err)
	}
	for _, path := range []string{"one", "ns/uts", "ns/ipc", "shm"} {
		if isMount(t, filepath.Join(s.Base, "sandbox", path)) {
			t.Errorf("%s is left", path)
		}
	}
	must(t, s.Create(t.Context(), &agentpb.CreateSandboxRequest{}))
	if _, err := s.Namespaces(true, spec.Users{}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("shared pid namespace that was not asked for: %v", err)
	}
}

func TestVolumes(t *testing.T) {
	require.Root(t)
	s := newSandbox(t)
	must(t, s.Create(t.Context(), &agentpb.CreateSandboxRequest{}))
	memory := &agentpb.Storage{Driver: "ephemeral", Fstype: "tmpfs", MountPoint: s.Base + "/sandbox/ephemeral/cache",
		Options: []string{"noexec", "size=1048576", "mode=0777"}, FsGroup: &agentpb.FSGroup{GroupId: 2000}}
	must(t, s.Mount(t.Context(), memory))
	must(t, s.Mount(t.Context(), memory)) // a second container of the pod
	info, err := os.Stat(memory.MountPoint)
	must(t, err)
	if st := sys(info); st.Gid != 2000 || info.Mode().Perm() != 0o777 || info.Mode()&os.ModeSetgid == 0 {
		t.Errorf("volume: group %d, mode %v", st.Gid, info.Mode())
	}
	if err := os.WriteFile(memory.MountPoint+"/big", make([]byte, 2<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("more than the size: %v", err)
	}
	must(t, os.Remove(memory.MountPoint+"/big"))
	other := &agentpb.Storage{Driver: "ephemeral", Fstype: "tmpfs", MountPoint: memory.MountPoint}
	if err := s.Mount(t.Context(), other); !errdefs.IsInvalidArgument(err) {
		t.Errorf("other volume at the same place: %v", err)
	}
	local := &agentpb.Storage{Driver: "local", MountPoint: s.Base + "/shared/containers/pod/rootfs/local/x", Options: []string{"mode=1777"}}
	must(t, s.Mount(t.Context(), local))
	info, err = os.Stat(local.MountPoint)
	must(t, err)
	if info.Mode() != os.ModeDir|os.ModeSticky|0o777 {
		t.Errorf("folder: %v", info.Mode())
	}
	testSubPath(t, s, memory.MountPoint)
	// The host has put a link in the way.
	must(t, os.Symlink("/etc", s.Base+"/shared/containers/link"))
	evil := &agentpb.Storage{Driver: "local", MountPoint: s.Base + "/shared/containers/link/evil"}
	if err := s.Mount(t.Context(), evil); err == nil {
		t.Error("a volume was made through a link")
	}
	if _, err := os.Stat("/etc/evil"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("outside: %v", err)
	}
}

// testSubPath asks for parts of a volume that containers have made, removed and replaced.
func testSubPath(t *testing.T, s *Sandbox, volume string) {
	t.Helper()
	part := func(name string) *agentpb.Storage {
		return &agentpb.Storage{Driver: "local", MountPoint: volume + "/" + name, Options: []string{"mode=0777"}}
	}
	must(t, s.Mount(t.Context(), part("a/b")))
	if info, err := os.Stat(volume + "/a/b"); err != nil || info.Mode().Perm() != 0o777 || sys(info).Gid != 2000 {
		t.Errorf("a new part: %v, %v", info, err)
	}
	must(t, os.Remove(volume+"/a/b"))
	must(t, s.Mount(t.Context(), part("a/b")))
	if _, err := os.Stat(volume + "/a/b"); err != nil {
		t.Errorf("a part that was removed: %v", err)
	}
	must(t, os.Mkdir(volume+"/own", 0o700))
	must(t, os.WriteFile(volume+"/file", []byte("x"), 0o600))
	must(t, os.Symlink("../../shm", volume+"/link"))
	for _, name := range []string{"own", "file"} {
		before, err := os.Stat(volume + "/" + name)
		must(t, err)
		must(t, s.Mount(t.Context(), part(name)))
		if after, err := os.Stat(volume + "/" + name); err != nil || after.Mode() != before.Mode() {
			t.Errorf("%s: mode %v became %v, %v", name, before.Mode(), after.Mode(), err)
		}
	}
	if err := s.Mount(t.Context(), part("link/x")); err == nil {
		t.Error("a part was made through a link")
	}
}

func TestVolumeOptions(t *testing.T) {
	for name, storage := range map[string]*agentpb.Storage{
		"driver":        {Driver: "blk"},
		"type":          {Driver: "ephemeral", Fstype: "ext4"},
		"huge pages":    {Driver: "ephemeral", Fstype: "hugetlbfs"},
		"option":        {Driver: "ephemeral", Fstype: "tmpfs", Options: []string{"context=x"}},
		"two in one":    {Driver: "ephemeral", Fstype: "tmpfs", Options: []string{"size=1,exec"}},
		"mode":          {Driver: "ephemeral", Fstype: "tmpfs", Options: []string{"mode=99"}},
		"negative size": {Driver: "ephemeral", Fstype: "tmpfs", Options: []string{"size=-1"}},
		"group":         {Driver: "local", Options: []string{"fsgid=root"}},
	} {
		if _, err := parseVolume(storage); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNames(t *testing.T) {
	for name, ok := range map[string]bool{
		"": true, "pod": true, "a.b-c": true, strings.Repeat("a", 64): true, strings.Repeat("a", 65): false,
		"-a": false, "a-": false, "a b": false, "a/b": false, "ä": false, "a\n": false,
	} {
		if err := checkHostname(name); (err == nil) != ok {
			t.Errorf("hostname %q: %v", name, err)
		}
	}
	for name, test := range map[string]struct {
		in   []string
		want string
		ok   bool
	}{
		"nothing":        {nil, "", true},
		"lines":          {[]string{"# c", "", "nameserver  fd00::1 ", "options ndots:5 edns0", "search svc.local ."}, "nameserver fd00::1\noptions ndots:5 edns0\nsearch svc.local .\n", true},
		"name as server": {[]string{"nameserver evil.example"}, "", false},
		"two servers":    {[]string{"nameserver 1.1.1.1 2.2.2.2"}, "", false},
		"two lines":      {[]string{"search a\nnameserver 1.1.1.1"}, "search a nameserver 1.1.1.1\n", true}, // rebuilt as what it is: one line
		"directive":      {[]string{"sortlist 1.1.1.1"}, "", false},
		"alone":          {[]string{"search"}, "", false},
		"endless":        {make([]string, maxDNSLines+1), "", false},
	} {
		got, err := resolvConf(test.in)
		if (err == nil) != test.ok || string(got) != test.want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func FuzzResolvConf(f *testing.F) {
	f.Add("nameserver 1.1.1.1")
	f.Add("search a b")
	f.Fuzz(func(t *testing.T, line string) {
		out, err := resolvConf([]string{line})
		if err == nil && strings.Count(string(out), "\n") > 1 {
			t.Errorf("%q became %q", line, out)
		}
	})
}

func TestSysctl(t *testing.T) {
	s := newSandbox(t)
	must(t, os.MkdirAll(s.Sysctls+"/net/core", 0o755))
	must(t, s.SetSysctl("net.core.somaxconn", "77"))
	if got, err := os.ReadFile(s.Sysctls + "/net/core/somaxconn"); err != nil || string(got) != "77" {
		t.Errorf("value: %q, %v", got, err)
	}
	for _, name := range []string{"kernel.core_pattern", "net", "net..x", "net.core./x", "net/core/x"} {
		if err := s.SetSysctl(name, "x"); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestOOM plays the kernel: the file changes when something happens.
func TestOOM(t *testing.T) {
	s := newSandbox(t)
	dir := s.Cgroups.Dir("/coffer/c1")
	must(t, os.MkdirAll(dir, 0o755))
	file := filepath.Join(dir, "memory.events")
	must(t, os.WriteFile(file, []byte("oom 0\noom_kill 0\n"), 0o600))
	stop, err := s.WatchOOM("c1", "/coffer/c1")
	must(t, err)
	must(t, os.WriteFile(file, []byte("oom 1\noom_kill 0\n"), 0o600)) // a limit was hit, nobody died
	must(t, os.WriteFile(file, []byte("oom 1\noom_kill 1\n"), 0o600))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if id, err := s.NextOOM(ctx); err != nil || id != "c1" {
		t.Errorf("event: %q, %v", id, err)
	}
	stop()
	must(t, os.WriteFile(file, []byte("oom_kill 2\n"), 0o600))
	short, end := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer end()
	if id, err := s.NextOOM(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("event after the watch: %q, %v", id, err)
	}
	if stop, err := s.WatchOOM("c2", "/coffer/none"); err != nil {
		t.Errorf("group without the file: %v", err)
	} else {
		stop()
	}
}

func itoa(n uint64) string { return strconv.FormatUint(n, 10) }

func sys(info os.FileInfo) *syscall.Stat_t { return info.Sys().(*syscall.Stat_t) }

// TestVolumeSize keeps a size that can be filled and leaves the others to the kernel.
func TestVolumeSize(t *testing.T) {
	for size, kept := range map[string]bool{
		"size=1048576": true, "size=10%": true, "size=100%": true, "size=64k": true, "size=1M": true,
		"size=999999999999999": false, "size=999999999999k": false, "size=99999999M": false, "size=999999999999999g": false,
		"size=101%": false, "size=0": false, "size=0k": false, "size=0%": false,
	} {
		v, err := parseVolume(&agentpb.Storage{Driver: "ephemeral", Fstype: "tmpfs", Options: []string{size}})
		must(t, err)
		if got := slices.Contains(v.data, size); got != kept {
			t.Errorf("%s: kept %t, want %t", size, got, kept)
		}
	}
}
