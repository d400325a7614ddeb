package plugin

import (
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	agentpb "github.com/coffer-project/coffer/proto/agent"
	podresources "github.com/coffer-project/coffer/proto/podresources/v1"
	"github.com/coffer-project/coffer/shim/config"
	"github.com/coffer-project/coffer/shim/device/vfio/vfiotest"
)

const firstGPU = "0000:1b:00.0"

// board makes the node one with a whole board of GPUs, of which a device plugin tells.
func (h *harness) board() (gpus, switches []string) {
	h.t.Helper()
	for _, f := range vfiotest.HGXH100() {
		h.machine.Add(h.t, f)
	}
	h.config.Devices.ColdPlugVFIO = config.PortRoot
	h.config.Devices.CDISpecDirs = []string{h.machine.SpecDir}
	h.config.Devices.PodResourceAPISock = ""
	gpus = h.machine.WriteSpec(h.t, "nvidia.com/pgpu", h.machine.Addresses(func(f vfiotest.Function) bool { return f.Driver == "nvidia" })...)
	switches = h.machine.WriteSpec(h.t, "nvidia.com/nvswitch", h.machine.Addresses(func(f vfiotest.Function) bool { return f.Driver != "nvidia" })...)
	return gpus, switches
}

// node is what containerd puts into the specification of a container with a device.
func (h *harness) node(address string) specs.LinuxDevice {
	return specs.LinuxDevice{Path: h.machine.Node(address), Type: "c", Major: 511}
}

// devicesOf are the devices and the CDI annotations of a container as its guest was asked for it.
func devicesOf(t *testing.T, h *harness, id string) (devices []*agentpb.Device, annotations map[string]string) {
	t.Helper()
	annotations = map[string]string{}
	for _, call := range h.guest.Calls("CreateContainer") {
		request := call.Request.(*agentpb.CreateContainerRequest)
		if request.GetContainerId() != id {
			continue
		}
		if n := len(request.GetOCI().GetLinux().GetDevices()); n != 0 {
			t.Errorf("the guest learns of %d device nodes of the host", n)
		}
		for key, value := range request.GetOCI().GetAnnotations() {
			if strings.HasPrefix(key, "cdi.k8s.io/") {
				annotations[key] = value
			}
		}
		return request.GetDevices(), annotations
	}
	t.Fatalf("the guest was not asked for %s", id)
	return nil, nil
}

func (h *harness) checkGivenBack() {
	h.t.Helper()
	records, err := filepath.Glob(filepath.Join(h.config.StateDir, "devices", "*.json"))
	if err != nil || len(records) > 0 {
		h.t.Errorf("devices are still reserved: %q, %v", records, err)
	}
}

// TestDevicesOfKubelet is a pod whose containers share a board: the kubelet tells of all, each container has its own.
func TestDevicesOfKubelet(t *testing.T) {
	h := newHarness(t)
	gpus, switches := h.board()
	pod := &podresources.Pod{Name: "web", Containers: []*podresources.Container{{Name: "c1"}}}
	for _, name := range append(slices.Clone(gpus), switches...) {
		kind, id, _ := strings.Cut(name, "=")
		pod.Containers[0].Devices = append(pod.Containers[0].Devices, &podresources.Devices{ResourceName: kind, DeviceIds: []string{id}})
	}
	h.config.Devices.PodResourceAPISock = vfiotest.Serve(t, pod).Socket
	h.runSandbox()
	given := h.vm().Config.PCIDevices
	if len(given) != 12 || given[0].Address != "0000:05:00.0" || given[4].Address != firstGPU || !given[4].OwnNode || given[4].Claim == nil {
		t.Errorf("the vm was given %+v", given)
	}
	for i, f := range vfiotest.HGXH100() {
		h.devices = nil
		if i < 2 {
			h.devices = []specs.LinuxDevice{h.node(f.Address), h.node("0000:05:00.0")}
		}
		id := "c" + f.Address[5:7]
		// An annotation of the node's names means nothing in the guest.
		must(t, h.create(id, stdioPaths{}, map[string]string{sandboxKey: podID, "cdi.k8s.io/host": "nvidia.com/pgpu=vfio0"}))
		must(t, h.start(id, ""))
		if i == 2 {
			break
		}
	}
	devices, annotations := devicesOf(t, h, "c43")
	if len(devices) != 2 || devices[0].GetId() != "vfio1" || devices[0].GetType() != "vfio-pci-gk" ||
		devices[0].GetContainerPath() != "/dev/vfio/devices/vfio1" || !slices.Equal(devices[0].GetOptions(), []string{"0000:43:00.0=05/00"}) {
		t.Errorf("devices are %v", devices)
	}
	if want := map[string]string{"cdi.k8s.io/vfio1": "nvidia.com/gpu=1"}; !maps.Equal(annotations, want) {
		t.Errorf("annotations are %v", annotations)
	}
	if devices, annotations := devicesOf(t, h, "c52"); len(devices) != 0 || len(annotations) != 0 {
		t.Errorf("a container without devices gets %v, %v", devices, annotations)
	}
	must(t, h.stop())
	h.checkGivenBack()
	if got := h.machine.Resets(firstGPU); got != 1 {
		t.Errorf("the first gpu was reset %d times", got)
	}
}

// TestDevicesOfContainer is what ctr does: an annotation, or a node in the container's own specification.
func TestDevicesOfContainer(t *testing.T) {
	for name, byNode := range map[string]bool{"annotation": false, "node": true} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			gpus, _ := h.board()
			annotations := map[string]string{}
			if byNode {
				h.devices = []specs.LinuxDevice{h.node(firstGPU)}
			} else {
				annotations["cdi.k8s.io/gpu"] = gpus[0]
			}
			must(t, h.create("c1", stdioPaths{}, annotations))
			must(t, h.start("c1", ""))
			devices, guest := devicesOf(t, h, "c1")
			if len(devices) != 1 || devices[0].GetId() != "vfio0" || !slices.Equal(devices[0].GetOptions(), []string{firstGPU + "=00/00"}) {
				t.Errorf("devices are %v", devices)
			}
			if want := map[string]string{"cdi.k8s.io/vfio0": "nvidia.com/gpu=0"}; !maps.Equal(guest, want) {
				t.Errorf("annotations are %v", guest)
			}
			h.process("c1", "").Exit(0)
			h.wait("c1", "")
			must(t, h.delete("c1", ""))
			h.checkGivenBack()
			h.shutdownTask("c1")
			h.await("shim to end", h.end.Done())
		})
	}
}

// TestDevicesLate refuses a container whose device came after its pod's start: it would run without.
func TestDevicesLate(t *testing.T) {
	h := newHarness(t)
	h.board()
	h.runSandbox()
	h.devices = []specs.LinuxDevice{h.node(firstGPU)}
	err := h.create("c1", stdioPaths{}, map[string]string{sandboxKey: podID})
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "/dev/vfio/devices/vfio0") {
		t.Errorf("error is %v", err)
	}
	must(t, h.stop())
}

// TestDevicesGivenBack fails the start of a VM that has devices.
func TestDevicesGivenBack(t *testing.T) {
	h := newHarness(t)
	gpus, _ := h.board()
	h.driver.StartErr = errdefs.ErrUnavailable
	if err := h.create("c1", stdioPaths{}, map[string]string{"cdi.k8s.io/gpu": gpus[0]}); !errdefs.IsUnavailable(err) {
		t.Errorf("error is %v", err)
	}
	h.checkGivenBack()
	h.shutdownTask("c1")
	h.await("shim to end", h.end.Done())
}

// TestDevicesOff is the default: nodes are dropped, annotations pass as they are.
func TestDevicesOff(t *testing.T) {
	h := newHarness(t)
	h.board()
	h.config.Devices.ColdPlugVFIO = config.PortNone
	h.runSandbox()
	h.devices = []specs.LinuxDevice{h.node(firstGPU)}
	must(t, h.create("c1", stdioPaths{}, map[string]string{sandboxKey: podID, "cdi.k8s.io/x": "nvidia.com/gpu=0"}))
	if devices, annotations := devicesOf(t, h, "c1"); len(devices) != 0 || len(annotations) != 1 || len(h.vm().Config.PCIDevices) != 0 {
		t.Errorf("got %v, %v", devices, annotations)
	}
	must(t, h.stop())
}

func (h *harness) stop() error {
	_, err := h.sandboxes.StopSandbox(h.ctx, &sandboxapi.StopSandboxRequest{SandboxID: podID})
	return err
}
