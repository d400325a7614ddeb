package policy

import (
	"errors"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"

	agentpb "github.com/coffer-project/coffer/proto/agent"
	"github.com/coffer-project/coffer/proto/agentpolicy"
	guestpb "github.com/coffer-project/coffer/proto/guestpull/v1"
	"github.com/coffer-project/coffer/proto/oci"
)

const pod = "/run/kata-containers/"

// usual is what a node sends for a pod without anything special.
func usual() *agentpb.CreateContainerRequest {
	bind := func(destination, source string) *oci.Mount {
		return &oci.Mount{Destination: destination, Source: source, Type: "bind", Options: []string{"rbind"}}
	}
	return &agentpb.CreateContainerRequest{
		ContainerId: "c1",
		Storages:    []*agentpb.Storage{{Driver: "image_guest_pull", Source: "registry.test/app:1", MountPoint: pod + "c1/rootfs"}},
		OCI: &oci.Spec{
			Root:    &oci.Root{Path: pod + "c1/rootfs"},
			Process: &oci.Process{Capabilities: &oci.LinuxCapabilities{Bounding: []string{"CAP_CHOWN", "CAP_NET_RAW"}}},
			Mounts: []*oci.Mount{
				{Destination: "/proc", Type: "proc", Source: "proc"}, {Destination: "/dev", Type: "tmpfs", Source: "tmpfs"},
				{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup"},
				bind("/etc/hosts", sharedDir+"c1-hosts"), bind("/dev/shm", shmDir), bind("/data", pod+"c1/rootfs/data"),
				bind("/var/run/secrets/kubernetes.io/serviceaccount", sharedDir+"c1-account"),
			},
			Linux: &oci.Linux{Sysctl: map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"}},
		},
	}
}

// asImage is a process that is the image's, with what Kubernetes adds.
func asImage() *agentpolicy.Process {
	return &agentpolicy.Process{
		ArgsOrigin: "image", CwdOrigin: "image", UserOrigin: "image",
		Env: []agentpolicy.Variable{
			{Name: "PATH", Value: enginePath, Origin: "engine"}, {Name: "HOSTNAME", Value: "pod-1.example", Origin: "engine"},
			{Name: "MODE", Value: "safe", Verified: "safe", Origin: "image"}, {Name: "LANG", Value: "C", Verified: "C", Origin: "restored"},
			{Name: "KUBERNETES_SERVICE_HOST", Value: "10.96.0.1", Origin: "host"}, {Name: "KUBERNETES_SERVICE_PORT_HTTPS", Value: "443", Origin: "host"},
			{Name: "KUBERNETES_PORT", Value: "tcp://10.96.0.1:443", Origin: "host"}, {Name: "KUBERNETES_PORT_443_TCP", Value: "tcp://[fd00::1]:443", Origin: "host"},
			{Name: "KUBERNETES_PORT_443_TCP_PROTO", Value: "tcp", Origin: "host"}, {Name: "KUBERNETES_PORT_443_TCP_PORT", Value: "443", Origin: "host"},
			{Name: "KUBERNETES_PORT_443_TCP_ADDR", Value: "fd00::1", Origin: "host"}, {Name: "POD_NAME", Value: "app-0", Origin: "host"},
			{Name: "POD_IPS", Value: "10.0.0.7,fd00::7", Origin: "host"},
		},
	}
}

func TestStrictContainer(t *testing.T) {
	type container = agentpb.CreateContainerRequest
	env := func(name, value, origin string) func(*container, *agentpolicy.Facts) {
		return func(_ *container, f *agentpolicy.Facts) {
			f.Process.Env = append(f.Process.Env, agentpolicy.Variable{Name: name, Value: value, Origin: origin})
		}
	}
	mount := func(m *oci.Mount) func(*container, *agentpolicy.Facts) {
		return func(r *container, _ *agentpolicy.Facts) { r.OCI.Mounts = append(r.OCI.Mounts, m) }
	}
	cases := map[string]struct {
		change func(r *container, f *agentpolicy.Facts)
		reason string // empty: allowed
	}{
		"usual":               {func(*container, *agentpolicy.Facts) {}, ""},
		"sandbox":             {func(_ *container, f *agentpolicy.Facts) { f.Sandbox, f.Process = true, nil }, ""},
		"arguments":           {func(_ *container, f *agentpolicy.Facts) { f.Process.ArgsOrigin = "host" }, "arguments"},
		"further arguments":   {func(_ *container, f *agentpolicy.Facts) { f.Process.ArgsOrigin = "entrypoint" }, "arguments"},
		"user":                {func(_ *container, f *agentpolicy.Facts) { f.Process.UserOrigin = "host" }, "user"},
		"folder":              {func(_ *container, f *agentpolicy.Facts) { f.Process.CwdOrigin = "host" }, "working directory"},
		"process not known":   {func(_ *container, f *agentpolicy.Facts) { f.Process = nil }, "not known"},
		"own variable":        {env("LD_PRELOAD", "/evil.so", "host"), `"LD_PRELOAD"`},
		"overridden":          {env("MODE", "unsafe", "overridden"), `"MODE"`},
		"altered":             {env("MODE", "unsafe", "altered"), `"MODE"`},
		"origin unknown":      {env("POD_NAME", "app", "heaven"), `"POD_NAME"`},
		"path of the engine":  {env("PATH", "/tmp:/bin", "engine"), `"PATH"`},
		"terminal":            {env("TERM", "xterm", "engine"), ""},
		"odd terminal":        {env("TERM", "../../evil", "engine"), `"TERM"`},
		"name as a path":      {env("POD_NAME", "../../etc", "host"), `"POD_NAME"`},
		"service as a name":   {env("A_SERVICE_HOST", "evil.test", "host"), `"A_SERVICE_HOST"`},
		"port as text":        {env("A_SERVICE_PORT", "80; rm", "host"), `"A_SERVICE_PORT"`},
		"link as a file":      {env("A_PORT", "file:///etc/passwd", "host"), `"A_PORT"`},
		"link with more":      {env("A_PORT_80_TCP", "tcp://1.2.3.4:80/$(x)", "host"), `"A_PORT_80_TCP"`},
		"address with a zone": {env("POD_IP", "fe80::1%eth0", "host"), `"POD_IP"`},
		"endless name":        {env(strings.Repeat("A", 5000), "1", "host"), `A..."`},
		"emptyDir": {func(r *container, _ *agentpolicy.Facts) {
			r.Storages = append(r.Storages, &agentpb.Storage{Driver: "ephemeral"})
		}, "storages"},
		"image volume": {func(_ *container, f *agentpolicy.Facts) { f.Volumes = make([]agentpolicy.Image, 1) }, "storages"},
		"block device": {func(r *container, _ *agentpolicy.Facts) { r.Devices = make([]*agentpb.Device, 1) }, "devices"},
		"GPU": {func(r *container, f *agentpolicy.Facts) {
			r.Devices = []*agentpb.Device{{Type: "vfio-pci-gk"}}
			f.Passed, f.CDI = []string{"nvidia.com/gpu=0"}, &agentpolicy.CDI{}
		}, ""},
		"device node":      {func(r *container, _ *agentpolicy.Facts) { r.OCI.Linux.Devices = make([]*oci.LinuxDevice, 1) }, "devices"},
		"shared processes": {func(r *container, _ *agentpolicy.Facts) { r.SandboxPidns = true }, "processes"},
		"kernel variable": {func(r *container, _ *agentpolicy.Facts) {
			r.OCI.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1"}
		}, "kernel variables"},
		"privileged": {func(r *container, _ *agentpolicy.Facts) {
			r.OCI.Process.Capabilities.Bounding = []string{"CAP_SYS_ADMIN"}
		}, "capabilities"},
		"ambient": {func(r *container, _ *agentpolicy.Facts) {
			r.OCI.Process.Capabilities.Ambient = []string{"CAP_SYS_PTRACE"}
		}, "capabilities"},
		"config map":            {mount(&oci.Mount{Destination: "/etc/app", Source: sharedDir + "c1-app", Type: "bind"}), "mount"},
		"passed-through disk":   {func(_ *container, f *agentpolicy.Facts) { f.Disks = []string{"nvme0n1"} }, "disks of the host's"},
		"hosts of another type": {mount(&oci.Mount{Destination: "/etc/hosts", Type: "tmpfs"}), "mount"},
		"over the program":      {mount(&oci.Mount{Destination: "/bin/app", Source: sharedDir + "c1-evil", Type: "bind"}), "mount"},
		"another's root":        {mount(&oci.Mount{Destination: "/data2", Source: pod + "c2/rootfs/data2", Type: "bind"}), "mount"},
		"own folder elsewhere":  {mount(&oci.Mount{Destination: "/data2", Source: pod + "c1/rootfs/data", Type: "bind"}), "mount"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			r, f := usual(), &agentpolicy.Facts{Stage: agentpolicy.StageContainer, Process: asImage()}
			tc.change(r, f)
			err := NewStrict().AllowContainer(t.Context(), r, f)
			if tc.reason == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if !errors.Is(err, errdefs.ErrPermissionDenied) || !strings.Contains(err.Error(), tc.reason) || !strings.Contains(err.Error(), "cofferctl policy generate") {
				t.Errorf("error: %v", err)
			}
		})
	}
}

func TestStrictRequests(t *testing.T) {
	for name, tc := range map[string]struct {
		method  string
		request proto.Message
		denied  bool
	}{
		"exec":             {"ExecProcess", &agentpb.ExecProcessRequest{ContainerId: "c1"}, true},
		"forward":          {"Forward", &guestpb.ForwardRequest{Port: 80}, true},
		"input":            {"WriteStdin", &agentpb.WriteStreamRequest{}, true},
		"end of input":     {"CloseStdin", &agentpb.CloseStdinRequest{}, false},
		"output":           {"ReadStdout", &agentpb.ReadStreamRequest{}, false},
		"set policy":       {"SetPolicy", &agentpb.SetPolicyRequest{}, true},
		"swap":             {"AddSwap", &agentpb.AddSwapRequest{}, true},
		"kernel modules":   {"CreateSandbox", &agentpb.CreateSandboxRequest{KernelModules: []*agentpb.KernelModule{{Name: "x"}}}, true},
		"hooks":            {"CreateSandbox", &agentpb.CreateSandboxRequest{GuestHookPath: "/x"}, true},
		"pod":              {"CreateSandbox", &agentpb.CreateSandboxRequest{Storages: []*agentpb.Storage{{Driver: "ephemeral", MountPoint: shmDir}}}, false},
		"pod with storage": {"CreateSandbox", &agentpb.CreateSandboxRequest{Storages: []*agentpb.Storage{{Driver: "ephemeral", MountPoint: shmDir + "2"}}}, true},
		"pod with disk":    {"CreateSandbox", &agentpb.CreateSandboxRequest{Storages: []*agentpb.Storage{{Driver: "blk", MountPoint: shmDir}}}, true},
		"shared processes": {"CreateSandbox", &agentpb.CreateSandboxRequest{SandboxPidns: true}, true},
		"file":             {"CopyFile", &agentpb.CopyFileRequest{Path: sharedDir + "c1-hosts"}, false},
		"file elsewhere":   {"CopyFile", &agentpb.CopyFileRequest{Path: "/etc/ssl/cert.pem"}, true},
		"file by dots":     {"CopyFile", &agentpb.CopyFileRequest{Path: sharedDir + "../../c1/rootfs/bin/app"}, true},
		"folder as such":   {"CopyFile", &agentpb.CopyFileRequest{Path: strings.TrimSuffix(sharedDir, "/")}, true},
		"other type":       {"CopyFile", &agentpb.SetPolicyRequest{}, true},
		"container":        {"CreateContainer", usual(), false},
	} {
		err := NewStrict().Allow(t.Context(), tc.method, tc.request)
		if errors.Is(err, errdefs.ErrPermissionDenied) != tc.denied || (err != nil) != tc.denied {
			t.Errorf("%s: %v", name, err)
		}
	}
}
