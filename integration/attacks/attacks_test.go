package attacks

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentpb "github.com/coffer-project/coffer/proto/agent"
	"github.com/coffer-project/coffer/proto/oci"
	typespb "github.com/coffer-project/coffer/proto/types"
)

const evilDigest = "sha256:4a8d7d5e8b1fbb0c5ff0b6a29b0e5b3d6f3e9a4c2b1d0e9f8a7b6c5d4e3f2a10"

func withMetadata(pairs string) []string {
	return []string{`image_guest_pull={"metadata":{` + pairs + `}}`}
}

// TestHonestHost: the same calls without an attack work, or the refusals below would prove nothing.
func TestHonestHost(t *testing.T) {
	images := newRegistry(t)
	g := newGuest(t, generated(t, images), images)
	g.run(t, "c1", "setup")
	g.remove(t, "c1")
	g.run(t, "c2", "proxy")
	g.run(t, "c3", "app")
	probe := &agentpb.ExecProcessRequest{ContainerId: "c3", ExecId: "e1", Process: &oci.Process{Args: []string{"/probe"}, Cwd: "/", Env: []string{"VERIFY=always"}, User: &oci.User{}}}
	if _, err := g.ExecProcess(t.Context(), probe); err != nil {
		t.Errorf("probe: %v", err)
	}
	probe.ExecId, probe.Process.User.Username = "e2", "0:0" // as our shim says who the container runs as
	if _, err := g.ExecProcess(t.Context(), probe); err != nil {
		t.Errorf("probe: %v", err)
	}
	g.run(t, "h", "helper")
	// A restart: the container's process has ended, and a new one takes its place before the old one is removed.
	if _, err := g.SignalProcess(t.Context(), &agentpb.SignalProcessRequest{ContainerId: "c3", Signal: 9}); err != nil {
		t.Fatal(err)
	}
	if _, err := g.WaitProcess(t.Context(), &agentpb.WaitProcessRequest{ContainerId: "c3"}); err != nil {
		t.Fatal(err)
	}
	g.run(t, "c4", "app")
}

// TestOtherContainers changes one thing of an honest request.
func TestOtherContainers(t *testing.T) {
	for name, attack := range map[string]struct {
		change func(t *testing.T, g *guest, r *agentpb.CreateContainerRequest)
		code   codes.Code
		reason string
		// early: nothing was pulled
		early bool
	}{
		"swapped image reference": {
			func(_ *testing.T, _ *guest, r *agentpb.CreateContainerRequest) {
				r.Storages[0].Source = "registry.test/evil:1"
			},
			codes.PermissionDenied, "which is another one", false,
		},
		"swapped digest": {
			func(_ *testing.T, _ *guest, r *agentpb.CreateContainerRequest) {
				r.Storages[0].DriverOptions = withMetadata(`"containerd.io/snapshot/cri.manifest-digest":"` + evilDigest + `"`)
			},
			codes.PermissionDenied, "image that is asked for is another one", true,
		},
		"digest in the reference": {
			func(_ *testing.T, _ *guest, r *agentpb.CreateContainerRequest) {
				r.Storages[0].Source = "registry.test/app@" + evilDigest
			},
			codes.PermissionDenied, "name has another digest", true,
		},
		"tag moved": {
			func(_ *testing.T, g *guest, _ *agentpb.CreateContainerRequest) {
				g.registry.images["registry.test/app:1"] = g.registry.images["registry.test/evil:1"]
			},
			codes.PermissionDenied, "which is another one", false,
		},
		"sandbox in the spec": {
			func(_ *testing.T, _ *guest, r *agentpb.CreateContainerRequest) {
				r.OCI.Annotations["io.kubernetes.cri.container-type"] = "sandbox"
			},
			codes.InvalidArgument, "disagree on whether it is the sandbox", true,
		},
		"sandbox in the image": {
			func(_ *testing.T, _ *guest, r *agentpb.CreateContainerRequest) {
				r.Storages[0].DriverOptions = withMetadata(`"io.kubernetes.cri.container-type":"sandbox"`)
			},
			codes.InvalidArgument, "disagree on whether it is the sandbox", true,
		},
		"mount point registered before": {
			func(_ *testing.T, _ *guest, r *agentpb.CreateContainerRequest) {
				before := &agentpb.Storage{Driver: "ephemeral", Fstype: "tmpfs", Source: "tmpfs", MountPoint: r.Storages[0].MountPoint}
				r.Storages = append([]*agentpb.Storage{before}, r.Storages...)
			},
			codes.InvalidArgument, "mount point", true,
		},
		"image pulled elsewhere": {
			func(_ *testing.T, g *guest, r *agentpb.CreateContainerRequest) {
				r.Storages[0].MountPoint = g.base + "/c0/rootfs"
			},
			codes.InvalidArgument, "image storage", true,
		},
		"no pull at all": {func(_ *testing.T, _ *guest, r *agentpb.CreateContainerRequest) { r.Storages = nil }, codes.InvalidArgument, "exactly one is needed", true},
		"second root": {func(_ *testing.T, _ *guest, r *agentpb.CreateContainerRequest) {
			r.Storages = append(r.Storages, r.Storages[0])
		}, codes.InvalidArgument, "exactly one is needed", true},
		"layers of the host beside it": {
			func(_ *testing.T, g *guest, r *agentpb.CreateContainerRequest) {
				layer := &agentpb.Storage{Driver: "blk", Source: "1e/01", Fstype: "erofs", Options: []string{"ro"}, MountPoint: g.base + "/c1/layers/0"}
				r.Storages = append(r.Storages, layer)
			},
			codes.InvalidArgument, "not offered by this guest", true,
		},
		"layers of the host in its place": {
			func(_ *testing.T, _ *guest, r *agentpb.CreateContainerRequest) {
				for i := range 2 {
					r.Storages[i] = &agentpb.Storage{
						Driver: "erofs.multi-layer", Source: fmt.Sprintf("1e/0%d", i), Fstype: "erofs", Options: []string{"ro", "X-kata.multi-layer=true"},
						MountPoint: r.Storages[0].MountPoint,
					}
					r.Storages = append(r.Storages, nil)
				}
				r.Storages = r.Storages[:2]
			},
			codes.InvalidArgument, "not offered by this guest", true,
		},
		"layers of the host over it": {
			func(_ *testing.T, _ *guest, r *agentpb.CreateContainerRequest) {
				r.Storages = append(r.Storages, &agentpb.Storage{Driver: "overlayfs", Source: "overlay", Fstype: "overlay", MountPoint: r.Storages[0].MountPoint})
			},
			codes.InvalidArgument, "not offered by this guest", true,
		},
		"another container's folder": {
			func(_ *testing.T, _ *guest, r *agentpb.CreateContainerRequest) {
				r.SharedMounts = []*agentpb.SharedMount{{Name: "m", SrcCtr: "p", SrcPath: "/", DstCtr: "c1", DstPath: "/work"}}
			},
			codes.InvalidArgument, "shared between containers", true,
		},
		"user in two places": {
			func(_ *testing.T, _ *guest, r *agentpb.CreateContainerRequest) {
				r.StringUser = &agentpb.StringUser{Uid: "1000"}
			},
			codes.PermissionDenied, "the user is another one", false,
		},
		"sealed secret for the public": {
			func(t *testing.T, g *guest, r *agentpb.CreateContainerRequest) {
				g.copyIn(t, "c1-page/index.html", "sealed.fakejwsheader.e30.fakesignature")
				r.OCI.Mounts = append(r.OCI.Mounts, &oci.Mount{Destination: "/srv/www", Source: g.base + "/shared/containers/c1-page", Type: "bind"})
			},
			codes.PermissionDenied, "sealed secret in the mount at /srv/www", false,
		},
		"sealed secret in hosts": {
			func(t *testing.T, g *guest, r *agentpb.CreateContainerRequest) {
				g.copyIn(t, "c1-hosts", "sealed.fakejwsheader.e30.fakesignature")
				r.OCI.Mounts = append(r.OCI.Mounts, &oci.Mount{Destination: "/etc/hosts", Source: g.base + "/shared/containers/c1-hosts", Type: "bind"})
			},
			codes.PermissionDenied, "sealed secret in the mount at /etc/hosts", false,
		},
		"disk of the host": {
			func(_ *testing.T, _ *guest, r *agentpb.CreateContainerRequest) {
				r.Devices = []*agentpb.Device{{Type: "blk", Id: "1e/01", ContainerPath: "/dev/sda"}}
			},
			codes.PermissionDenied, "device /dev/sda", true,
		},
		"trusted store of the host": {
			func(_ *testing.T, _ *guest, r *agentpb.CreateContainerRequest) {
				r.OCI.Linux.Devices = []*oci.LinuxDevice{{Path: "/dev/trusted_store", Type: "b"}}
			},
			codes.PermissionDenied, "device /dev/trusted_store", true,
		},
		"device by annotation": {
			func(_ *testing.T, _ *guest, r *agentpb.CreateContainerRequest) {
				r.OCI.Annotations["cdi.k8s.io/vfio0"] = "nvidia.com/gpu=0"
			},
			codes.PermissionDenied, "annotation cdi.k8s.io/vfio0", true,
		},
		"forged name": {func(_ *testing.T, _ *guest, r *agentpb.CreateContainerRequest) {
			r.OCI.Annotations["io.kubernetes.cri.container-name"] = "setup"
		}, codes.PermissionDenied, "command and arguments", false},
		"name of nobody": {func(_ *testing.T, _ *guest, r *agentpb.CreateContainerRequest) {
			r.OCI.Annotations["io.kubernetes.cri.container-name"] = "evil"
		}, codes.PermissionDenied, "no container of this name", true},
		"no annotations": {func(_ *testing.T, _ *guest, r *agentpb.CreateContainerRequest) { r.OCI.Annotations = nil }, codes.PermissionDenied, "no container of this name", true},
		"other command": {func(_ *testing.T, _ *guest, r *agentpb.CreateContainerRequest) {
			r.OCI.Process.Args = []string{"/bin/sh"}
		}, codes.PermissionDenied, "command and arguments", false},
		"further arguments": {func(_ *testing.T, _ *guest, r *agentpb.CreateContainerRequest) {
			r.OCI.Process.Args = []string{"/app", "--insecure"}
		}, codes.PermissionDenied, "command and arguments", false},
		"further variable": {func(_ *testing.T, _ *guest, r *agentpb.CreateContainerRequest) {
			r.OCI.Process.Env = append(r.OCI.Process.Env, "LD_PRELOAD=/evil.so")
		}, codes.PermissionDenied, "variable LD_PRELOAD", false},
		"image's variable":    {func(_ *testing.T, _ *guest, r *agentpb.CreateContainerRequest) { r.OCI.Process.Env[0] = "MODE=unsafe" }, codes.PermissionDenied, "variable MODE", false},
		"manifest's variable": {func(_ *testing.T, _ *guest, r *agentpb.CreateContainerRequest) { r.OCI.Process.Env[1] = "VERIFY=never" }, codes.PermissionDenied, "variable VERIFY", false},
		"variable dropped": {func(_ *testing.T, _ *guest, r *agentpb.CreateContainerRequest) {
			r.OCI.Process.Env = r.OCI.Process.Env[:1]
		}, codes.PermissionDenied, "variable VERIFY is missing", false},
		"other user":   {func(_ *testing.T, _ *guest, r *agentpb.CreateContainerRequest) { r.OCI.Process.User.UID = 1000 }, codes.PermissionDenied, "user", false},
		"other folder": {func(_ *testing.T, _ *guest, r *agentpb.CreateContainerRequest) { r.OCI.Process.Cwd = "/work" }, codes.PermissionDenied, "working directory", false},
		"program covered": {
			func(_ *testing.T, g *guest, r *agentpb.CreateContainerRequest) {
				r.OCI.Mounts = append(r.OCI.Mounts, &oci.Mount{Destination: "/app", Source: g.base + "/shared/containers/evil", Type: "bind"})
			},
			codes.PermissionDenied, "mount at /app", true,
		},
		"file as emptyDir": {
			func(_ *testing.T, g *guest, r *agentpb.CreateContainerRequest) {
				r.OCI.Mounts = append(r.OCI.Mounts, &oci.Mount{Destination: "/work", Source: g.base + "/shared/containers/evil", Type: "bind"})
			},
			codes.PermissionDenied, "mount at /work", true,
		},
		"capabilities": {
			func(_ *testing.T, _ *guest, r *agentpb.CreateContainerRequest) {
				r.OCI.Process.Capabilities = &oci.LinuxCapabilities{Bounding: []string{"CAP_SYS_ADMIN"}}
			},
			codes.PermissionDenied, "capability CAP_SYS_ADMIN", true,
		},
		"hooks": {
			func(_ *testing.T, _ *guest, r *agentpb.CreateContainerRequest) {
				r.OCI.Hooks = &oci.Hooks{Prestart: []*oci.Hook{{Path: "/bin/sh"}}}
			},
			codes.InvalidArgument, "hooks never run", true,
		},
		"root of the host's choice": {func(_ *testing.T, _ *guest, r *agentpb.CreateContainerRequest) { r.OCI.Root.Path = "/" }, codes.InvalidArgument, "root path", true},
		"shared processes":          {func(_ *testing.T, _ *guest, r *agentpb.CreateContainerRequest) { r.SandboxPidns = true }, codes.PermissionDenied, "process namespace", true},
	} {
		t.Run(name, func(t *testing.T) {
			images := newRegistry(t)
			g := newGuest(t, generated(t, images), images)
			g.run(t, "s", "setup")
			g.remove(t, "s")
			g.run(t, "p", "proxy")
			before := len(images.pulled)
			r := g.request("c1", "app")
			attack.change(t, g, r)
			_, err := g.CreateContainer(t.Context(), r)
			refused(t, err, attack.code, attack.reason)
			if g.has("c1") {
				t.Error("the container was made")
			}
			if pulled := len(images.pulled) > before; pulled == attack.early {
				t.Errorf("an image was pulled: %t", pulled)
			}
		})
	}
}

func refused(t *testing.T, err error, code codes.Code, reason string) {
	t.Helper()
	if status.Code(err) != code || !strings.Contains(err.Error(), reason) {
		t.Errorf("want %s because of %q, got %v", code, reason, err)
	}
}

// TestOrder replays and reorders calls, and leaves containers out.
func TestOrder(t *testing.T) {
	images := newRegistry(t)
	g := newGuest(t, generated(t, images), images)
	create := func(id, name string) error {
		_, err := g.CreateContainer(t.Context(), g.request(id, name))
		return err
	}
	refused(t, create("c1", "app"), codes.PermissionDenied, "app is to start after setup")
	refused(t, create("c1", "proxy"), codes.PermissionDenied, "proxy is to start after setup")
	if err := create("s", "setup"); err != nil {
		t.Fatal(err)
	}
	refused(t, create("c1", "proxy"), codes.PermissionDenied, "proxy is to start after setup") // it was made, and never ran
	if _, err := g.StartContainer(t.Context(), &agentpb.StartContainerRequest{ContainerId: "s"}); err != nil {
		t.Fatal(err)
	}
	refused(t, create("s2", "setup"), codes.PermissionDenied, "setup runs already")
	refused(t, create("c1", "app"), codes.PermissionDenied, "app is to start after proxy") // the sidecar was dropped
	g.run(t, "p", "proxy")
	g.remove(t, "p")
	refused(t, create("c1", "app"), codes.PermissionDenied, "app is to run beside proxy") // and is gone again
	g.run(t, "p2", "proxy")
	g.run(t, "c1", "app")
	refused(t, create("c2", "app"), codes.PermissionDenied, "app runs already")
	if err := create("c1", "app"); status.Code(err) != codes.PermissionDenied && status.Code(err) != codes.AlreadyExists {
		t.Errorf("the same call again: %v", err)
	}
}

// TestSandboxRunsNothing: a container that both its image and its specification call the sandbox gets past the policy, and runs nothing of
// what the host has put into it.
func TestSandboxRunsNothing(t *testing.T) {
	images := newRegistry(t)
	g := newGuest(t, generated(t, images), images)
	r := g.request("c1", "app")
	r.OCI.Process.Args = []string{"/bin/sh", "-c", "evil"}
	r.OCI.Annotations["io.kubernetes.cri.container-type"] = "sandbox"
	r.Storages[0].DriverOptions = withMetadata(`"io.kubernetes.cri.container-type":"sandbox"`)
	if _, err := g.CreateContainer(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if _, err := g.StartContainer(t.Context(), &agentpb.StartContainerRequest{ContainerId: "c1"}); err != nil {
		t.Fatal(err)
	}
	if g.has("c1") || len(images.pulled) > 0 {
		t.Error("the runtime was asked to run something, or an image was pulled")
	}
	_, err := g.ExecProcess(t.Context(), &agentpb.ExecProcessRequest{ContainerId: "c1", ExecId: "e", Process: &oci.Process{Args: []string{"/bin/sh"}, User: &oci.User{}}})
	refused(t, err, codes.PermissionDenied, "not among those that may be run")
}

// TestOtherUsers changes who a container with a user of the manifest runs as.
func TestOtherUsers(t *testing.T) {
	images := newRegistry(t)
	g := newGuest(t, generated(t, images), images)
	g.run(t, "s", "setup")
	g.run(t, "p", "proxy")
	g.run(t, "c1", "app")
	for name, user := range map[string]*oci.User{
		"root":          {AdditionalGids: []uint32{2000}},
		"other user":    {UID: 1001, AdditionalGids: []uint32{2000}},
		"other group":   {UID: 1000, GID: 7, AdditionalGids: []uint32{2000}},
		"further group": {UID: 1000, AdditionalGids: []uint32{2000, 6}},
	} {
		r := g.request("h", "helper")
		r.OCI.Process.User = user
		_, err := g.CreateContainer(t.Context(), r)
		t.Log(name)
		refused(t, err, codes.PermissionDenied, "the user is another one")
	}
}

// TestOtherCalls is what a host tries beside containers.
func TestOtherCalls(t *testing.T) {
	images := newRegistry(t)
	g := newGuest(t, generated(t, images), images)
	g.run(t, "s", "setup")
	g.run(t, "p", "proxy")
	g.run(t, "c1", "app")
	ctx := t.Context()
	exec := func(change func(*oci.Process)) error {
		p := &oci.Process{Args: []string{"/probe"}, Cwd: "/", User: &oci.User{}}
		change(p)
		_, err := g.ExecProcess(ctx, &agentpb.ExecProcessRequest{ContainerId: "c1", ExecId: "e1", Process: p})
		return err
	}
	refused(t, exec(func(p *oci.Process) { p.Args = []string{"/bin/sh"} }), codes.PermissionDenied, "not among those that may be run")
	refused(t, exec(func(p *oci.Process) { p.Args = append(p.Args, "-x") }), codes.PermissionDenied, "not among those that may be run")
	refused(t, exec(func(p *oci.Process) { p.Env = []string{"LD_PRELOAD=/x"} }), codes.PermissionDenied, "variable LD_PRELOAD")
	refused(t, exec(func(p *oci.Process) { p.User.UID = 7 }), codes.PermissionDenied, "another user")
	refused(t, exec(func(p *oci.Process) { p.User.Username = "root" }), codes.PermissionDenied, "another user")
	refused(t, exec(func(p *oci.Process) { p.User.Username = "0:7" }), codes.PermissionDenied, "another user")
	refused(t, exec(func(p *oci.Process) { p.Cwd = "/work" }), codes.PermissionDenied, "another folder")
	refused(t, exec(func(p *oci.Process) { p.Capabilities = &oci.LinuxCapabilities{Ambient: []string{"CAP_SYS_ADMIN"}} }), codes.PermissionDenied, "capabilities")

	_, err := g.SetPolicy(ctx, &agentpb.SetPolicyRequest{Policy: "package agent_policy"})
	refused(t, err, codes.PermissionDenied, "cannot be replaced")
	_, err = g.WriteStdin(ctx, &agentpb.WriteStreamRequest{ContainerId: "c1", Data: []byte("x")})
	refused(t, err, codes.PermissionDenied, "input")
	_, err = g.ReadStdout(ctx, &agentpb.ReadStreamRequest{ContainerId: "p", Len: 1})
	refused(t, err, codes.PermissionDenied, "stdout of container proxy is not for the host")
	_, err = g.ReadStderr(ctx, &agentpb.ReadStreamRequest{ContainerId: "p", Len: 1})
	refused(t, err, codes.PermissionDenied, "stderr of container proxy is not for the host")
	_, err = g.CopyFile(ctx, &agentpb.CopyFileRequest{Path: g.base + "/c1/rootfs/app", FileMode: 0o100755, Data: []byte("x"), FileSize: 1})
	refused(t, err, codes.PermissionDenied, "CopyFile")
	_, err = g.AddSwap(ctx, &agentpb.AddSwapRequest{})
	refused(t, err, codes.PermissionDenied, "disk of the host")
	_, err = g.AddSwapPath(ctx, &agentpb.AddSwapPathRequest{Path: "/dev/vdb"})
	refused(t, err, codes.PermissionDenied, "disk of the host")
	_, err = g.MemHotplugByProbe(ctx, &agentpb.MemHotplugByProbeRequest{MemHotplugProbeAddr: []uint64{1 << 32}})
	refused(t, err, codes.PermissionDenied, "add memory")
	_, err = g.SetGuestDateTime(ctx, &agentpb.SetGuestDateTimeRequest{Sec: 1})
	refused(t, err, codes.PermissionDenied, "choose the time")
	_, err = g.SetIPTables(ctx, &agentpb.SetIPTablesRequest{Data: []byte("*filter\nCOMMIT\n")})
	refused(t, err, codes.PermissionDenied, "packet filters")
	_, err = g.GetIPTables(ctx, &agentpb.GetIPTablesRequest{})
	refused(t, err, codes.PermissionDenied, "packet filters")
	_, err = g.UpdateInterface(ctx, &agentpb.UpdateInterfaceRequest{Interface: &typespb.Interface{Name: "lo"}})
	refused(t, err, codes.PermissionDenied, "UpdateInterface")
	_, err = g.UpdateRoutes(ctx, &agentpb.UpdateRoutesRequest{Routes: &agentpb.Routes{Routes: []*typespb.Route{{Dest: "127.0.0.0/8", Device: "lo"}}}})
	refused(t, err, codes.PermissionDenied, "UpdateRoutes")
	_, err = g.GetDiagnosticData(ctx, &agentpb.GetDiagnosticDataRequest{LogType: "termination_log", ContainerId: "p"})
	refused(t, err, codes.PermissionDenied, "GetDiagnosticData")
	_, err = g.UpdateEphemeralMounts(ctx, &agentpb.UpdateEphemeralMountsRequest{Storages: []*agentpb.Storage{{Driver: "ephemeral", MountPoint: g.base + "/c1/rootfs"}}})
	refused(t, err, codes.PermissionDenied, "UpdateEphemeralMounts")
	_, err = g.CreateSandbox(ctx, &agentpb.CreateSandboxRequest{GuestHookPath: "/run/hooks"})
	refused(t, err, codes.PermissionDenied, "hooks never run")
	_, err = g.CreateSandbox(ctx, &agentpb.CreateSandboxRequest{KernelModules: []*agentpb.KernelModule{{Name: "evil"}}})
	refused(t, err, codes.PermissionDenied, "kernel modules")
	_, err = g.CreateSandbox(ctx, &agentpb.CreateSandboxRequest{Storages: []*agentpb.Storage{{Driver: "ephemeral", MountPoint: g.base + "/c2/rootfs"}}})
	refused(t, err, codes.PermissionDenied, "storage other than shared memory")
}
