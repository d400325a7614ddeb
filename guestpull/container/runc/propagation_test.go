package runc_test

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	agentpb "github.com/coffer-project/coffer/proto/agent"
	"github.com/coffer-project/coffer/proto/oci"
)

// volume is an emptyDir of the pod, which its containers see at /v.
type volume struct {
	*pod
	t       *testing.T
	storage *agentpb.Storage
	execs   int
}

func newVolume(t *testing.T) *volume {
	t.Helper()
	p := newPod(t, false)
	return &volume{pod: p, t: t, storage: &agentpb.Storage{
		Driver: "ephemeral", Source: "tmpfs", Fstype: "tmpfs", MountPoint: filepath.Join(p.base, "sandbox/ephemeral/v"), Options: []string{"mode=0777"},
	}}
}

// container asks for a container that sleeps; all but those without propagation may mount.
func (v *volume) container(id, propagation string) *agentpb.CreateContainerRequest {
	req := v.request(id, "sleep", "1000")
	req.Storages = append(req.Storages, v.storage)
	req.OCI.Mounts = append(req.OCI.Mounts, &oci.Mount{Destination: "/v", Type: "bind", Source: v.storage.GetMountPoint(),
		Options: []string{"rbind", propagation}})
	caps := req.OCI.Process.Capabilities
	for _, set := range []*[]string{&caps.Bounding, &caps.Effective, &caps.Permitted} {
		*set = append(slices.Clone(*set), "CAP_SYS_ADMIN")
	}
	return req
}

func (v *volume) start(id, propagation string) {
	v.t.Helper()
	v.run(v.t, v.container(id, propagation))
}

func (v *volume) remove(id string) {
	v.t.Helper()
	must(v.t, v.Remove(v.t.Context(), id, 0))
}

// sh runs a script in a container and returns what it says.
func (v *volume) sh(id, script string) string {
	v.t.Helper()
	v.execs++
	exec := fmt.Sprintf("e%d", v.execs)
	must(v.t, v.Exec(v.t.Context(), &agentpb.ExecProcessRequest{ContainerId: id, ExecId: exec, Process: &oci.Process{
		Args: []string{"sh", "-c", script}, Env: []string{"PATH=/bin"}, Cwd: "/", User: &oci.User{},
		Capabilities: &oci.LinuxCapabilities{Bounding: []string{"CAP_SYS_ADMIN"}, Effective: []string{"CAP_SYS_ADMIN"}, Permitted: []string{"CAP_SYS_ADMIN"}},
	}}))
	v.wantExit(v.t, id, exec, 0)
	return v.output(v.t, id, exec, false)
}

// want compares what containers see at path in the volume.
func (v *volume) want(when, path string, want map[string]string) {
	v.t.Helper()
	for id, content := range want {
		if got := v.sh(id, "cat /v/"+path+" 2> /dev/null; true"); got != content {
			v.t.Errorf("%s, %s finds %q at %s, not %q", when, id, got, path, content)
		}
	}
}

// mounted lists what is mounted in the guest below the volume, and fails when there is more than that and the containers' roots.
func (v *volume) mounted() []string {
	v.t.Helper()
	var out []string
	for _, at := range mountsBelow(v.t, v.base) {
		rel := strings.TrimPrefix(at, v.base+"/")
		switch {
		case at == v.storage.GetMountPoint(), strings.HasPrefix(at, v.storage.GetMountPoint()+"/"):
			out = append(out, strings.TrimPrefix(at, v.storage.GetMountPoint()))
		case !strings.HasSuffix(rel, "/rootfs") && rel != "sandbox/shm" && !strings.HasPrefix(rel, "sandbox/ns/"):
			v.t.Errorf("%s is mounted in the guest", rel)
		}
	}
	return out
}

const mountFile = "busybox mount -t tmpfs none /v/m && echo inside > /v/m/file"

// TestSharedMounts: a container mounts something in a volume, and those see it who asked for it.
func TestSharedMounts(t *testing.T) {
	v := newVolume(t)
	v.start("watcher", "rslave")
	v.start("loner", "rprivate")
	v.start("mounter", "rshared")
	v.sh("mounter", "busybox mkdir /v/m && echo outside > /v/file && "+mountFile)
	v.want("after the mount", "m/file", map[string]string{"mounter": "inside\n", "watcher": "inside\n", "loner": ""})
	v.want("after the mount", "file", map[string]string{"mounter": "outside\n", "watcher": "outside\n", "loner": "outside\n"})
	if got := v.mounted(); !slices.Equal(got, []string{"", "/m"}) {
		t.Errorf("mounts in the guest: %q", got)
	}

	// One that starts later finds what there is, and takes nothing with it when it goes.
	v.start("late", "rslave")
	v.start("other", "rshared")
	v.want("later", "m/file", map[string]string{"late": "inside\n", "other": "inside\n"})
	v.remove("late")
	v.remove("other")
	v.want("after others went", "m/file", map[string]string{"mounter": "inside\n", "watcher": "inside\n"})

	// What a mere watcher mounts is its own.
	v.sh("watcher", "busybox mkdir /v/w && busybox mount -t tmpfs none /v/w && echo mine > /v/w/file")
	v.want("after the watcher's mount", "w/file", map[string]string{"watcher": "mine\n", "mounter": ""})

	v.sh("mounter", "busybox umount /v/m")
	v.want("after unmounting", "m/file", map[string]string{"mounter": "", "watcher": ""})

	// What it leaves goes with it: nested mounts, and one over the volume itself.
	v.sh("mounter", mountFile+" && busybox mkdir /v/m/n && busybox mount -t tmpfs none /v/m/n && busybox mount -t tmpfs none /v && echo cover > /v/file")
	v.want("under a cover", "file", map[string]string{"watcher": "cover\n", "loner": "outside\n"})
	v.remove("mounter")
	v.want("after the mounter", "file", map[string]string{"watcher": "outside\n", "loner": "outside\n"})
	v.want("after the mounter", "m/file", map[string]string{"watcher": "", "loner": ""})
	if got := v.mounted(); !slices.Equal(got, []string{""}) {
		t.Errorf("mounts in the guest: %q", got)
	}
	v.start("mounter", "rshared") // started anew
	v.sh("mounter", mountFile)
	v.want("after a restart", "m/file", map[string]string{"watcher": "inside\n", "loner": ""})
}

// TestGuestKeepsOutOfMounts: the guest follows no path into what a container has mounted.
func TestGuestKeepsOutOfMounts(t *testing.T) {
	v := newVolume(t)
	v.start("first", "rshared")
	v.start("second", "rshared")
	v.sh("first", "busybox mkdir /v/m && "+mountFile)
	part := func(name string) *agentpb.Storage {
		return &agentpb.Storage{Driver: "local", MountPoint: v.storage.GetMountPoint() + "/" + name, FsGroup: &agentpb.FSGroup{GroupId: 7}}
	}
	if err := v.sandbox.Mount(t.Context(), part("m/part")); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("part of a volume in a container's mount: %v", err)
	}
	must(t, v.sandbox.Mount(t.Context(), part("m"))) // it is there, that is all
	if _, _, err := v.sandbox.OpenVolume(part("m").GetMountPoint(), false); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("open a container's mount: %v", err)
	}
	v.want("untouched", "m/part", map[string]string{"second": ""})
	// Under a cover the guest still finds the volume itself.
	v.sh("second", "busybox mount -t tmpfs none /v")
	must(t, v.sandbox.Mount(t.Context(), part("below")))
	if got := v.sh("second", "ls /v"); got != "" {
		t.Errorf("in the cover: %q", got)
	}
	// While one is left that may have mounted it, it stays.
	v.remove("first")
	if got := v.mounted(); len(got) < 3 {
		t.Errorf("mounts in the guest: %q", got)
	}
	v.remove("second")
	if got := v.mounted(); !slices.Equal(got, []string{""}) {
		t.Errorf("mounts in the guest: %q", got)
	}
	v.start("reader", "rslave")
	if got := v.sh("reader", "ls /v"); got != "below\nm\n" {
		t.Errorf("the volume has %q", got)
	}
}

// TestSharedMountsRefused: by whom and where mounts cannot be shared.
func TestSharedMountsRefused(t *testing.T) {
	v := newVolume(t)
	last := func(req *agentpb.CreateContainerRequest) *oci.Mount {
		return req.GetOCI().GetMounts()[len(req.GetOCI().GetMounts())-1]
	}
	for name, change := range map[string]func(req *agentpb.CreateContainerRequest){
		"not privileged":  func(req *agentpb.CreateContainerRequest) { req.OCI.Process.Capabilities.Bounding = nil },
		"shared memory":   func(req *agentpb.CreateContainerRequest) { last(req).Source = v.base + "/sandbox/shm" },
		"namespaces":      func(req *agentpb.CreateContainerRequest) { last(req).Source = v.base + "/sandbox/ns" },
		"unknown storage": func(req *agentpb.CreateContainerRequest) { last(req).Source = v.base + "/sandbox/ephemeral/none" },
		"all storages":    func(req *agentpb.CreateContainerRequest) { last(req).Source = v.base + "/sandbox/ephemeral" },
		"root alone": func(req *agentpb.CreateContainerRequest) {
			last(req).Options = []string{"rbind"}
			req.OCI.Linux.RootfsPropagation = "rshared"
		},
		"namespaces, private": func(req *agentpb.CreateContainerRequest) {
			last(req).Source, last(req).Options = v.base+"/sandbox/ns", nil
		},
		"nested": func(req *agentpb.CreateContainerRequest) {
			req.Storages = append(req.Storages, &agentpb.Storage{Driver: "ephemeral", Fstype: "tmpfs", MountPoint: v.storage.GetMountPoint() + "/nested"})
		},
		"around": func(req *agentpb.CreateContainerRequest) {
			req.Storages = append(req.Storages, &agentpb.Storage{Driver: "ephemeral", Fstype: "tmpfs", MountPoint: v.base + "/sandbox/ephemeral"})
		},
	} {
		t.Run(name, func(t *testing.T) {
			req := v.container("c1", "rshared")
			change(req)
			if err := v.Create(t.Context(), req); !errdefs.IsInvalidArgument(err) {
				t.Errorf("got %v", err)
				if err == nil {
					v.remove("c1")
				}
			}
		})
	}
	if got := v.mounted(); !slices.Equal(got, []string{""}) {
		t.Errorf("mounts in the guest: %q", got)
	}
}
