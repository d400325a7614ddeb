package bundle

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestLoad(t *testing.T) {
	raw, err := os.ReadFile("testdata/cri-container.json")
	if err != nil {
		t.Fatal(err)
	}
	ctx, logged := captureLog(t.Context())
	dir := t.TempDir()
	write(t, filepath.Join(dir, "config.json"), raw, 0o600)
	b, err := Load(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	if b.Path() != dir || b.Terminal() || b.IsSandbox() || b.SharesPID() || b.NetNS() != "/proc/4242/ns/net" ||
		!strings.HasPrefix(b.SandboxID(), "4f6c1c3e") || b.Annotations()["team.example.com/owner"] != "blue" {
		t.Errorf("bundle is %s: terminal %v, sandbox %v %q, pid %v, net %q", b.Path(), b.Terminal(), b.IsSandbox(), b.SandboxID(), b.SharesPID(), b.NetNS())
	}
	if len(logged.AllEntries()) != 0 {
		t.Errorf("loading logged %v", logged.LastEntry().Message)
	}
}

func TestLoadRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		config string
		want   func(error) bool
	}{
		"no json":        {"config", errdefs.IsInvalidArgument},
		"empty":          {"", errdefs.IsInvalidArgument},
		"no process":     {`{"root":{},"linux":{}}`, errdefs.IsInvalidArgument},
		"no root":        {`{"process":{},"linux":{}}`, errdefs.IsInvalidArgument},
		"windows":        {`{"process":{},"root":{},"windows":{}}`, errdefs.IsInvalidArgument},
		"trailing bytes": {`{"process":{},"root":{},"linux":{}} {}`, errdefs.IsInvalidArgument},
		"huge":           {strings.Repeat(" ", maxConfig+1), errdefs.IsInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, _ := captureLog(t.Context())
			dir := t.TempDir()
			write(t, filepath.Join(dir, "config.json"), []byte(test.config), 0o600)
			if _, err := Load(ctx, dir); !test.want(err) {
				t.Errorf("got %v", err)
			}
		})
	}
	if _, err := Load(t.Context(), t.TempDir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no bundle: got %v", err)
	}
}

// TestUnknownFields: a newer containerd does not stop containers, but the node's log tells.
func TestUnknownFields(t *testing.T) {
	ctx, logged := captureLog(t.Context())
	if _, err := parse(ctx, []byte(`{"process":{"args":["a"]},"root":{},"linux":{"quantum":true}}`)); err != nil {
		t.Fatal(err)
	}
	entry := logged.LastEntry()
	if entry == nil || !strings.Contains(entry.Data["error"].(error).Error(), "quantum") {
		t.Errorf("log has %v", entry)
	}
}

func TestIsSandbox(t *testing.T) {
	for name, annotations := range map[string]map[string]string{
		"containerd": {annotationType: "sandbox"}, "cri-o": {annotationTypeCRIO: "sandbox"},
	} {
		t.Run(name, func(t *testing.T) {
			b := &Bundle{spec: &specs.Spec{Annotations: annotations}}
			if !b.IsSandbox() {
				t.Error("not recognised")
			}
		})
	}
}

// TestContainerdSpec takes specifications that containerd 2.4's own generator made, as for ctr and nerdctl: everything
// in them is understood, no file of the host is needed, and what is dropped is known.
func TestContainerdSpec(t *testing.T) {
	for name, dropped := range map[string]string{
		"ctr-default":    "",
		"ctr-privileged": "linux.resources.devices",
		"ctr-limits":     "linux.resources.cpu.cpus",
	} {
		t.Run(name, func(t *testing.T) {
			ctx, logged := captureLog(t.Context())
			b := parseFile(ctx, t, name+".json")
			req, files, err := b.CreateRequest(ctx, Options{ContainerID: "c", Rootfs: testRootfs(t, guestPull(""))})
			if err != nil {
				t.Fatal(err)
			}
			checkGuestOnly(t, req)
			if len(files.Jobs)+len(files.Live)+len(files.GuestPaths()) != 0 || files.TerminationLog != "" {
				t.Errorf("files of the host: %+v", files)
			}
			if len(req.GetOCI().GetMounts()) != len(b.spec.Mounts) {
				t.Errorf("%d mounts of %d are left", len(req.GetOCI().GetMounts()), len(b.spec.Mounts))
			}
			got := ""
			if entry := logged.LastEntry(); entry != nil {
				got, _ = entry.Data["fields"].(string)
			}
			if got != dropped {
				t.Errorf("dropped %q, want %q", got, dropped)
			}
		})
	}
}

func TestProcess(t *testing.T) {
	ctx, logged := captureLog(t.Context())
	p, err := ParseProcess([]byte(`{"terminal":true,"consoleSize":{"height":24,"width":80},"user":{"uid":5,"gid":6,"additionalGids":[7]},
		"args":["sh","-c","true"],"env":["A=b"],"cwd":"/tmp","capabilities":{"bounding":["CAP_KILL"]},"selinuxLabel":"x",
		"rlimits":[{"type":"RLIMIT_NOFILE","hard":2,"soft":1}],"noNewPrivileges":true,"oomScoreAdj":-3}`))
	if err != nil {
		t.Fatal(err)
	}
	got, err := Process(ctx, p, Users{})
	if err != nil {
		t.Fatal(err)
	}
	if !got.GetTerminal() || got.GetConsoleSize().GetWidth() != 80 || got.GetUser().GetGID() != 6 || got.GetCwd() != "/tmp" ||
		!reflect.DeepEqual(got.GetArgs(), []string{"sh", "-c", "true"}) || got.GetCapabilities().GetBounding()[0] != "CAP_KILL" ||
		got.GetRlimits()[0].GetSoft() != 1 || !got.GetNoNewPrivileges() || got.GetOOMScoreAdj() != -3 || got.GetSelinuxLabel() != "" {
		t.Errorf("process is %v", got)
	}
	if entry := logged.LastEntry(); entry == nil || entry.Data["fields"] != "process.selinuxLabel" {
		t.Errorf("log has %v", entry)
	}
	for name, raw := range map[string]string{"no json": "x", "array": "[]", "huge": strings.Repeat(" ", maxConfig+1)} {
		if _, err := ParseProcess([]byte(raw)); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	for name, p := range map[string]*specs.Process{"none": nil, "no arguments": {}} {
		if _, err := Process(ctx, p, Users{}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestResources(t *testing.T) {
	ctx, _ := captureLog(t.Context())
	limit, pids := int64(1<<20), int64(9)
	got, err := Resources(ctx, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}, Pids: &specs.LinuxPids{Limit: &pids}})
	if err != nil || got.GetMemory().GetLimit() != limit || got.GetPids().GetLimit() != pids || got.GetCPU() != nil {
		t.Errorf("got %v, %v", got, err)
	}
	if got, err := Resources(ctx, nil); err != nil || got == nil {
		t.Errorf("no resources: got %v, %v", got, err)
	}
}

// TestWithLimits changes some limits; the others, the devices and the bundle itself stay as they are.
func TestWithLimits(t *testing.T) {
	rules := []specs.LinuxDeviceCgroup{rule(7, 3, "rm")}
	before := &specs.LinuxResources{
		Devices: rules, Memory: &specs.LinuxMemory{Limit: new(int64(1 << 20)), Swap: new(int64(2 << 20))},
		Pids: &specs.LinuxPids{Limit: new(int64(9))},
	}
	for name, tc := range map[string]struct{ before, update, want *specs.LinuxResources }{
		"some": {
			before,
			&specs.LinuxResources{
				Devices: []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}},
				Memory:  &specs.LinuxMemory{Limit: new(int64(3 << 20))}, CPU: &specs.LinuxCPU{Shares: new(uint64(512))},
			},
			&specs.LinuxResources{
				Devices: rules, Memory: &specs.LinuxMemory{Limit: new(int64(3 << 20)), Swap: new(int64(2 << 20))},
				CPU: &specs.LinuxCPU{Shares: new(uint64(512))}, Pids: &specs.LinuxPids{Limit: new(int64(9))},
			},
		},
		"none":  {before, nil, before},
		"first": {nil, &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: new(int64(9))}}, &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: new(int64(9))}}},
	} {
		t.Run(name, func(t *testing.T) {
			b := &Bundle{path: "/b", spec: &specs.Spec{Hostname: "h", Linux: &specs.Linux{CgroupsPath: "/c", Resources: tc.before}}}
			got, err := b.WithLimits(tc.update)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got.spec.Linux.Resources, tc.want) || got.spec.Linux.CgroupsPath != "/c" || got.spec.Hostname != "h" || got.path != "/b" {
				t.Errorf("got %+v", got.spec.Linux.Resources)
			}
			if b.spec.Linux.Resources != tc.before || before.CPU != nil || *before.Memory.Limit != 1<<20 {
				t.Error("the bundle itself has changed")
			}
		})
	}
}

func TestSandboxFiles(t *testing.T) {
	config := &runtime.PodSandboxConfig{
		Hostname: "web-0",
		DnsConfig: &runtime.DNSConfig{
			Servers: []string{"10.96.0.10", "fd00::a"}, Searches: []string{"shop.svc.cluster.local", "svc.cluster.local"}, Options: []string{"ndots:5"},
		},
	}
	files, err := SandboxFiles(config, []string{"10.244.0.7", "fd00::7"})
	if err != nil {
		t.Fatal(err)
	}
	for destination, want := range map[string]string{
		"/etc/hostname": "web-0\n",
		"/etc/hosts": "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n" +
			"ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n10.244.0.7\tweb-0\nfd00::7\tweb-0\n",
		"/etc/resolv.conf": "search shop.svc.cluster.local svc.cluster.local\nnameserver 10.96.0.10\nnameserver fd00::a\noptions ndots:5\n",
	} {
		if got := string(files[destination]); got != want {
			t.Errorf("%s is\n%s\nwant\n%s", destination, got, want)
		}
	}
	jobs, paths := SandboxJobs("pod", files)
	copied := map[string]string{}
	for _, job := range jobs {
		copied[job.GuestPath] = string(job.Content)
	}
	for destination, content := range files {
		if got := copied[paths[destination]]; got != string(content) {
			t.Errorf("%s is copied to %s as %q", destination, paths[destination], got)
		}
		if !strings.HasPrefix(paths[destination], guestShared+"/pod-") {
			t.Errorf("%s is copied to %s", destination, paths[destination])
		}
	}

	bare, err := SandboxFiles(&runtime.PodSandboxConfig{}, nil)
	if err != nil || len(bare) != 1 || bare["/etc/hosts"] == nil {
		t.Errorf("without a configuration: %q, %v", bare, err)
	}
}

func TestSandboxFilesRefuse(t *testing.T) {
	for name, test := range map[string]struct {
		config *runtime.PodSandboxConfig
		ips    []string
	}{
		"hostname with a line": {config: &runtime.PodSandboxConfig{Hostname: "a\nb"}},
		"server with a line":   {config: &runtime.PodSandboxConfig{DnsConfig: &runtime.DNSConfig{Servers: []string{"1.1.1.1\nsearch evil"}}}},
		"empty search":         {config: &runtime.PodSandboxConfig{DnsConfig: &runtime.DNSConfig{Searches: []string{""}}}},
		"option with a space":  {config: &runtime.PodSandboxConfig{DnsConfig: &runtime.DNSConfig{Options: []string{"a b"}}}},
		"no address":           {config: &runtime.PodSandboxConfig{}, ips: []string{"10.0.0.1 evil"}},
	} {
		t.Run(name, func(t *testing.T) {
			if files, err := SandboxFiles(test.config, test.ips); !errdefs.IsInvalidArgument(err) {
				t.Errorf("got %q, %v", files, err)
			}
		})
	}
}

func TestGuestPath(t *testing.T) {
	a, b := guestPath("c", "/a/config"), guestPath("c", "/b/config")
	if a == b || a != guestPath("c", "/a/config") {
		t.Errorf("paths are %s and %s", a, b)
	}
	if got := guestPath("c", "/etc/ünïcode name"); !strings.HasSuffix(got, "-_n_code_name") {
		t.Errorf("path is %s", got)
	}
}

func write(t *testing.T, name string, data []byte, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(name, data, mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(name, mode); err != nil {
		t.Fatal(err)
	}
}
