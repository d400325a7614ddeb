package podpolicy

import (
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/proto"

	agentpb "github.com/coffer-project/coffer/proto/agent"
	"github.com/coffer-project/coffer/proto/agentpolicy"
	"github.com/coffer-project/coffer/proto/oci"
)

const devicesPod = `kind: Pod
spec:
  volumes:
  - {name: creds, secret: {secretName: s}}
  - {name: page, configMap: {name: p}}
  - {name: model, image: {reference: model}}
  - {name: disk, persistentVolumeClaim: {claimName: d}}
  containers:
  - name: app
    image: app
    volumeMounts:
    - {name: creds, mountPath: /creds}
    - {name: page, mountPath: /srv/www}
    - {name: model, mountPath: /model}
    - {name: model, mountPath: /weights, subPath: data/weights}
    volumeDevices: [{name: disk, devicePath: /dev/xvda}]
    resources: {limits: {nvidia.com/pgpu: 2}}
  - {name: plain, image: app}
`

// asked is a request with the facts that the guest adds to it, at the second stage.
type asked struct {
	request *agentpb.CreateContainerRequest
	facts   *agentpolicy.Facts
}

func (a asked) volume(mountPoint, requested, target, digest string) {
	a.facts.Volumes = append(a.facts.Volumes, agentpolicy.Image{Reference: "model", Requested: requested, MountPoint: mountPoint, Target: target, Digest: digest})
}

func (a asked) mount(destination, source string) {
	a.request.OCI.Mounts = append(a.request.OCI.Mounts, &oci.Mount{Destination: destination, Source: source, Type: "bind"})
}

func (a asked) gpu(n, annotation, value string) {
	a.request.Devices = append(a.request.Devices, &agentpb.Device{Type: "vfio-pci-gk", ContainerPath: "/dev/vfio/" + n, Options: []string{"0000:01:00.0=01/00"}})
	a.request.OCI.Linux.Devices = append(a.request.OCI.Linux.Devices, &oci.LinuxDevice{Path: "/dev/vfio/" + n, Type: "c"})
	a.request.OCI.Annotations[annotation] = value
}

func (a asked) disk(path string) {
	a.request.Devices = append(a.request.Devices, &agentpb.Device{Type: "blk", Id: "1e/01", ContainerPath: path})
	a.request.OCI.Linux.Devices = append(a.request.OCI.Linux.Devices, &oci.LinuxDevice{Path: path, Type: "b"})
}

func (a asked) sealed(mountPoint string) {
	a.facts.SealedFiles = append(a.facts.SealedFiles, agentpolicy.SealedFile{MountPoint: mountPoint, Path: "key", Secret: "kbs:///a/b/c"})
}

func newAsked(container string) asked {
	return asked{
		&agentpb.CreateContainerRequest{
			ContainerId: "c1", Storages: []*agentpb.Storage{{Driver: "image_guest_pull"}},
			OCI: &oci.Spec{
				Root: &oci.Root{Path: "/run/kata-containers/c1/rootfs"}, Process: &oci.Process{User: &oci.User{}}, Linux: &oci.Linux{},
				Annotations: map[string]string{"io.kubernetes.cri.container-name": container},
			},
		},
		&agentpolicy.Facts{
			Method: "CreateContainer", Stage: agentpolicy.StageContainer, Running: []string{},
			Image: &agentpolicy.Image{Reference: "app", Digest: "sha256:app", Config: &ocispec.ImageConfig{}},
			Process: &agentpolicy.Process{
				Args: []string{"/app", "serve"}, Cwd: "/srv", ArgsOrigin: "image", CwdOrigin: "image", UserOrigin: "image",
				Env: []agentpolicy.Variable{{Name: "PATH", Value: "/bin", Origin: "image"}},
			},
		},
	}
}

// TestVolumesAndDevices asks the rules of a pod with every kind of volume and device.
func TestVolumesAndDevices(t *testing.T) {
	const images = "/run/kata-containers/c1/images/"
	text, err := Generate(t.Context(), []byte(devicesPod), Options{Lookup: lookup})
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		container string
		change    func(a asked)
		reason    string // empty: allowed
	}{
		"nothing": {"app", func(asked) {}, ""},
		"image": {"app", func(a asked) {
			a.volume(images+"0", "sha256:model", "sha256:model-index", "sha256:model")
			a.mount("/model", images+"0")
			a.mount("/weights", images+"0/data/weights")
		}, ""},
		"image by index": {"app", func(a asked) {
			a.volume(images+"0", "", "sha256:model-index", "sha256:arm64")
			a.mount("/model", images+"0")
		}, ""},
		"image, before it is pulled": {"app", func(a asked) {
			a.facts.Stage, a.facts.Process = agentpolicy.StageRequest, nil
			a.volume(images+"0", "", "", "")
			a.mount("/model", images+"0")
		}, ""},
		"image of others": {"app", func(a asked) {
			a.volume(images+"0", "", "sha256:evil", "sha256:evil")
			a.mount("/model", images+"0")
		}, "image is mounted as a volume at " + images + "0"},
		"image, others asked for": {"app", func(a asked) {
			a.volume(images+"0", "sha256:evil", "sha256:model-index", "sha256:model")
			a.mount("/model", images+"0")
		}, "image is mounted as a volume"},
		"image elsewhere": {"app", func(a asked) {
			a.volume(images+"0", "", "sha256:model", "sha256:model")
			a.mount("/etc", images+"0")
		}, "mount at /etc"},
		"another part of it": {"app", func(a asked) {
			a.volume(images+"0", "", "sha256:model", "sha256:model")
			a.mount("/model", images+"0/tests")
		}, "mount at /model"},
		"image that nobody mounts": {"app", func(a asked) { a.volume(images+"0", "", "sha256:model", "sha256:model") }, "image is mounted"},
		"files in its place":       {"app", func(a asked) { a.mount("/model", "/run/kata-containers/shared/containers/c1-x") }, "mount at /model"},
		"image of another container": {"plain", func(a asked) {
			a.volume(images+"0", "", "sha256:model", "sha256:model")
			a.mount("/model", images+"0")
		}, "mount at /model"},

		"disk":                      {"app", func(a asked) { a.disk("/dev/xvda") }, ""},
		"disk elsewhere":            {"app", func(a asked) { a.disk("/dev/sda") }, "device /dev/sda"},
		"disk of another container": {"plain", func(a asked) { a.disk("/dev/xvda") }, "device /dev/xvda"},
		"no disk, but its path":     {"app", func(a asked) { a.disk("/dev/xvda"); a.request.Devices[0].Type = "scsi" }, "device /dev/xvda"},
		"character device":          {"app", func(a asked) { a.disk("/dev/xvda"); a.request.OCI.Linux.Devices[0].Type = "c" }, "device /dev/xvda"},

		"two GPUs": {"app", func(a asked) {
			a.gpu("1", "cdi.k8s.io/vfio1", "nvidia.com/gpu=0")
			a.gpu("2", "cdi.k8s.io/vfio2", "nvidia.com/gpu=1")
		}, ""},
		"three GPUs": {"app", func(a asked) {
			for _, n := range []string{"1", "2", "3"} {
				a.gpu(n, "cdi.k8s.io/vfio"+n, "nvidia.com/gpu="+n)
			}
		}, "more GPUs than the pod has"},
		"GPU of another container": {"plain", func(a asked) { a.gpu("1", "cdi.k8s.io/vfio1", "nvidia.com/gpu=0") }, "device /dev/vfio/1"},
		"all of them by name":      {"app", func(a asked) { a.gpu("1", "cdi.k8s.io/vfio1", "nvidia.com/gpu=all") }, "annotation cdi.k8s.io/vfio1"},
		"another annotation":       {"app", func(a asked) { a.request.OCI.Annotations["cdi.k8s.io/evil"] = "nvidia.com/gpu=0" }, "annotation cdi.k8s.io/evil"},
		"annotation alone":         {"plain", func(a asked) { a.request.OCI.Annotations["cdi.k8s.io/vfio1"] = "nvidia.com/gpu=0" }, "annotation cdi.k8s.io/vfio1"},

		"disk in a GPU's place": {"app", func(a asked) {
			a.gpu("1", "cdi.k8s.io/vfio1", "nvidia.com/gpu=0")
			a.facts.Disks = []string{"nvme0n1"}
		}, "disk nvme0n1 of a device that is passed through"},
		"passed through whole": {"app", func(a asked) {
			a.gpu("1", "cdi.k8s.io/vfio1", "nvidia.com/gpu=0")
			a.request.Devices[0].Type = "vfio-pci"
		}, "device /dev/vfio/1"},

		"sealed secret":             {"app", func(a asked) { a.sealed("/creds") }, ""},
		"sealed secret, published":  {"app", func(a asked) { a.sealed("/creds"); a.sealed("/srv/www") }, "sealed secret in the mount at /srv/www"},
		"sealed secret of nobody's": {"plain", func(a asked) { a.sealed("/etc/hosts") }, "sealed secret in the mount at /etc/hosts"},
	} {
		t.Run(name, func(t *testing.T) {
			policy, err := agentpolicy.Compile(text)
			if err != nil {
				t.Fatal(err)
			}
			a := newAsked(tc.container)
			if tc.container == "plain" { // which starts after the other
				first := newAsked("app")
				allowed(t, policy, first.request, first.facts)
				allowed(t, policy, &agentpb.StartContainerRequest{ContainerId: "c1"}, &agentpolicy.Facts{Method: "StartContainer"})
			}
			tc.change(a)
			input, err := agentpolicy.Input(a.request, a.facts)
			if err != nil {
				t.Fatal(err)
			}
			d, err := policy.Decide(t.Context(), "CreateContainerRequest", input, true)
			if err != nil || d.Allowed != (tc.reason == "") || !strings.Contains(strings.Join(d.Reasons, "; "), tc.reason) {
				t.Errorf("allowed %t because of %q, %v", d.Allowed, d.Reasons, err)
			}
		})
	}
}

func allowed(t *testing.T, policy *agentpolicy.Policy, request proto.Message, facts *agentpolicy.Facts) {
	t.Helper()
	input, err := agentpolicy.Input(request, facts)
	if err != nil {
		t.Fatal(err)
	}
	if d, err := policy.Decide(t.Context(), agentpolicy.RuleName(request), input, true); err != nil || !d.Allowed {
		t.Fatalf("%s: %q, %v", agentpolicy.RuleName(request), d.Reasons, err)
	}
}
