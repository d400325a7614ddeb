package container

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"

	"github.com/coffer-project/coffer/guestpull/policy"
	agentpb "github.com/coffer-project/coffer/proto/agent"
	"github.com/coffer-project/coffer/proto/oci"
)

const someDigest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func kind(value string) map[string]string {
	return map[string]string{"io.kubernetes.cri.container-type": value}
}

func metadata(pairs string) []string {
	return []string{`image_guest_pull={"metadata":{` + pairs + `}}`}
}

func TestPlan(t *testing.T) {
	f := newFakes(t)
	req := f.request("c1")
	req.Storages[0].DriverOptions = metadata(`"containerd.io/snapshot/cri.manifest-digest":"` + someDigest + `","io.coffer/platform":"linux/arm64"`)
	req.Storages = append(req.Storages, &agentpb.Storage{Driver: "ephemeral", Fstype: "tmpfs", MountPoint: f.sandboxDir() + "/ephemeral/x"})
	req.OCI.Annotations = kind("container")
	req.OCI.Process.User = nil
	p, err := f.newPlan(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if p.sandbox || p.image.Digest != someDigest || p.image.Platform != "linux/arm64" || p.image.Reference != "registry.test/app:1" || p.image.ContainerID != "c1" {
		t.Errorf("image: %+v", p.image)
	}
	if len(p.storages) != 1 || p.spec.Linux.CgroupsPath != "/coffer/c1" {
		t.Errorf("plan: %+v", p)
	}
}

// volume is a storage for an image that is mounted beside the root.
func volume(mountPoint string) *agentpb.Storage {
	return &agentpb.Storage{
		Driver: "image_guest_pull", Source: "registry.test/data:1", Fstype: "overlay", Options: []string{"ro"}, MountPoint: mountPoint,
		DriverOptions: metadata(`"io.coffer/platform":"linux/amd64"`),
	}
}

// TestPlanRefuses is the list of what a host may try around the image, see contracts.md 6.3 and the issues it names.
func TestPlanRefuses(t *testing.T) {
	for name, change := range map[string]func(f *fakes, r *agentpb.CreateContainerRequest){
		"id with slash":    func(_ *fakes, r *agentpb.CreateContainerRequest) { r.ContainerId = "../c1" },
		"id of dots":       func(_ *fakes, r *agentpb.CreateContainerRequest) { r.ContainerId = ".." },
		"empty id":         func(_ *fakes, r *agentpb.CreateContainerRequest) { r.ContainerId = "" },
		"endless id":       func(_ *fakes, r *agentpb.CreateContainerRequest) { r.ContainerId = strings.Repeat("a", 129) },
		"exec id":          func(_ *fakes, r *agentpb.CreateContainerRequest) { r.ExecId = "-x" },
		"no specification": func(_ *fakes, r *agentpb.CreateContainerRequest) { r.OCI = nil },
		// The root would be the host's choice.
		"no image": func(_ *fakes, r *agentpb.CreateContainerRequest) { r.Storages = nil },
		"other driver as root": func(f *fakes, r *agentpb.CreateContainerRequest) {
			r.Storages = []*agentpb.Storage{{Driver: "local", MountPoint: f.rootfs("c1")}}
		},
		// Which of the two was checked?
		"two images": func(_ *fakes, r *agentpb.CreateContainerRequest) {
			r.Storages = append(r.Storages, proto.CloneOf(r.Storages[0]))
		},
		"volume where the host copies to": func(f *fakes, r *agentpb.CreateContainerRequest) {
			r.Storages = append(r.Storages, volume(f.sharedDir()+"/x"))
		},
		"volume of another container": func(f *fakes, r *agentpb.CreateContainerRequest) {
			r.Storages = append(r.Storages, volume(f.imagesDir("c2")+"/0"))
		},
		"volume beside the images": func(f *fakes, r *agentpb.CreateContainerRequest) {
			r.Storages = append(r.Storages, volume(f.imagesDir("c1")+"/../mounts"))
		},
		"volume of another number": func(f *fakes, r *agentpb.CreateContainerRequest) {
			r.Storages = append(r.Storages, volume(f.imagesDir("c1")+"/00"))
		},
		"too many volumes": func(f *fakes, r *agentpb.CreateContainerRequest) {
			for i := range maxVolumes + 1 {
				r.Storages = append(r.Storages, volume(fmt.Sprint(f.imagesDir("c1"), "/", i)))
			}
		},
		"two volumes in one place": func(f *fakes, r *agentpb.CreateContainerRequest) {
			r.Storages = append(r.Storages, volume(f.imagesDir("c1")+"/0"), volume(f.imagesDir("c1")+"/0"))
		},
		"volume to write to": func(f *fakes, r *agentpb.CreateContainerRequest) {
			r.Storages = append(r.Storages, volume(f.imagesDir("c1")+"/0"))
			r.OCI.Mounts = []*oci.Mount{{Destination: "/v", Source: f.imagesDir("c1") + "/0", Type: "bind", Options: []string{"rbind", "rw"}}}
		},
		"volume that was not asked for": func(f *fakes, r *agentpb.CreateContainerRequest) {
			r.OCI.Mounts = []*oci.Mount{{Destination: "/v", Source: f.imagesDir("c1") + "/0", Type: "bind", Options: []string{"ro"}}}
		},
		"volume outside its image": func(f *fakes, r *agentpb.CreateContainerRequest) {
			r.Storages = append(r.Storages, volume(f.imagesDir("c1")+"/0"))
			r.OCI.Mounts = []*oci.Mount{{Destination: "/v", Source: f.imagesDir("c1") + "/0/../../rootfs", Type: "bind", Options: []string{"ro"}}}
		},
		// A program would find other files than the image has there.
		"the image's folder elsewhere": func(f *fakes, r *agentpb.CreateContainerRequest) {
			r.OCI.Mounts = []*oci.Mount{{Destination: "/etc", Source: f.rootfs("c1") + "/tmp", Type: "bind"}}
		},
		"another container's folder": func(f *fakes, r *agentpb.CreateContainerRequest) {
			r.OCI.Mounts = []*oci.Mount{{Destination: "/etc", Source: f.rootfs("c2") + "/etc", Type: "bind"}}
		},
		"unknown policy for groups": func(_ *fakes, r *agentpb.CreateContainerRequest) {
			r.OCI.Annotations = map[string]string{keyGroups: "none"}
		},
		// Verity layers beside the pull.
		"layers as blocks": func(_ *fakes, r *agentpb.CreateContainerRequest) {
			r.Storages = append(r.Storages, &agentpb.Storage{Driver: "blk", Fstype: "erofs", MountPoint: "/run/x"})
		},
		"overlay of the host": func(_ *fakes, r *agentpb.CreateContainerRequest) {
			r.Storages = append(r.Storages, &agentpb.Storage{Driver: "overlayfs", Options: []string{"io.katacontainers.fs-opt.block_device=file"}})
		},
		"shared file system": func(_ *fakes, r *agentpb.CreateContainerRequest) { r.Storages[0].Driver = "virtio-fs" },
		"image mounted aside": func(_ *fakes, r *agentpb.CreateContainerRequest) {
			r.Storages[0].MountPoint = "/run/kata-containers/c2/rootfs"
		},
		"image mounted with dot": func(_ *fakes, r *agentpb.CreateContainerRequest) { r.Storages[0].MountPoint += "/." },
		"image with options":     func(_ *fakes, r *agentpb.CreateContainerRequest) { r.Storages[0].Options = []string{"lowerdir=/"} },
		"image shared":           func(_ *fakes, r *agentpb.CreateContainerRequest) { r.Storages[0].Shared = true },
		"root elsewhere":         func(_ *fakes, r *agentpb.CreateContainerRequest) { r.OCI.Root.Path = "/" },
		"no reference":           func(_ *fakes, r *agentpb.CreateContainerRequest) { r.Storages[0].Source = "" },
		"endless reference":      func(_ *fakes, r *agentpb.CreateContainerRequest) { r.Storages[0].Source = strings.Repeat("a", 1025) },
		"no metadata":            func(_ *fakes, r *agentpb.CreateContainerRequest) { r.Storages[0].DriverOptions = nil },
		"metadata twice": func(_ *fakes, r *agentpb.CreateContainerRequest) {
			r.Storages[0].DriverOptions = append(metadata(""), metadata("")...)
		},
		"metadata is no json": func(_ *fakes, r *agentpb.CreateContainerRequest) {
			r.Storages[0].DriverOptions = []string{"image_guest_pull={"}
		},
		"digest": func(_ *fakes, r *agentpb.CreateContainerRequest) {
			r.Storages[0].DriverOptions = metadata(`"containerd.io/snapshot/cri.manifest-digest":"sha256:x"`)
		},
		// The sandbox flag is read from two places.
		"sandbox in the image only": func(_ *fakes, r *agentpb.CreateContainerRequest) {
			r.Storages[0].DriverOptions = metadata(`"io.kubernetes.cri.container-type":"sandbox"`)
		},
		"sandbox in annotations only": func(_ *fakes, r *agentpb.CreateContainerRequest) { r.OCI.Annotations = kind("sandbox") },
		"sandbox in annotations, not in the image": func(_ *fakes, r *agentpb.CreateContainerRequest) {
			r.OCI.Annotations = kind("sandbox")
			r.Storages[0].DriverOptions = metadata(`"io.kubernetes.cri.container-type":"container"`)
		},
		"sandbox with volumes": func(f *fakes, r *agentpb.CreateContainerRequest) {
			r.OCI.Annotations = kind("sandbox")
			r.Storages[0].DriverOptions = metadata(`"io.kubernetes.cri.container-type":"sandbox"`)
			r.Storages = append(r.Storages, &agentpb.Storage{Driver: "local", MountPoint: f.sandboxDir() + "/x"})
		},
		"volume over the root": func(f *fakes, r *agentpb.CreateContainerRequest) {
			r.Storages = append(r.Storages, &agentpb.Storage{Driver: "ephemeral", Fstype: "tmpfs", MountPoint: f.rootfs("c1")})
		},
		"volume over the agent": func(_ *fakes, r *agentpb.CreateContainerRequest) {
			r.Storages = append(r.Storages, &agentpb.Storage{Driver: "ephemeral", Fstype: "tmpfs", MountPoint: "/usr/bin"})
		},
		"device":        func(_ *fakes, r *agentpb.CreateContainerRequest) { r.Devices = []*agentpb.Device{{Type: "blk"}} },
		"shared mounts": func(_ *fakes, r *agentpb.CreateContainerRequest) { r.SharedMounts = []*agentpb.SharedMount{{}} },
		"stdio ports":   func(_ *fakes, r *agentpb.CreateContainerRequest) { r.StdoutPort = 1 },
		"user in two ways": func(_ *fakes, r *agentpb.CreateContainerRequest) {
			r.StringUser = &agentpb.StringUser{Uid: "app", AdditionalGids: []string{"x"}}
		},
		"endless storages": func(_ *fakes, r *agentpb.CreateContainerRequest) {
			r.Storages = make([]*agentpb.Storage, maxStorages+1)
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakes(t)
			req := f.request("c1")
			change(f, req)
			err := f.Create(t.Context(), req)
			if !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Errorf("got %v", err)
			}
			if len(f.runtime.calls)+len(f.images.held)+len(f.IDs()) > 0 {
				t.Errorf("something was done: %v, %v, %v", f.runtime.calls, f.images.held, f.IDs())
			}
			if entries, err := os.ReadDir(f.Base); err != nil || len(entries) != 2 {
				t.Errorf("something was made: %v, %v", entries, err)
			}
		})
	}
}

func FuzzPlan(f *testing.F) {
	fake := &Manager{Options: Options{Base: "/run/kata-containers", Sandbox: &fakeSandbox{}, Policy: policy.NewStrict(), CgroupParent: "/coffer"}}
	seed := (&fakes{Manager: fake}).request("c1")
	data, err := proto.Marshal(seed)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		var req agentpb.CreateContainerRequest
		if proto.Unmarshal(data, &req) != nil {
			return
		}
		p, err := fake.newPlan(t.Context(), &req)
		if err != nil {
			return
		}
		if !idPattern.MatchString(p.id) || p.spec.Root.Path != fake.rootfs(p.id) {
			t.Errorf("accepted %+v", p)
		}
	})
}
