package vfio_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	podresources "github.com/coffer-project/coffer/proto/podresources/v1"
	"github.com/coffer-project/coffer/shim/device/vfio"
	"github.com/coffer-project/coffer/shim/device/vfio/vfiotest"
)

func addresses(devices []vfio.Device) (out []string) {
	for _, d := range devices {
		out = append(out, d.Address)
	}
	return out
}

func isGPU(f vfiotest.Function) bool    { return f.Driver == "nvidia" }
func isSwitch(f vfiotest.Function) bool { return f.Driver == "nvidia-nvswitch" }

// pod is one with a container that has devices of one resource.
func pod(name, resource string, ids ...string) *podresources.Pod {
	return &podresources.Pod{Name: name, Namespace: "ml", Containers: []*podresources.Container{
		{Name: "sidecar"}, {Name: "train", Devices: []*podresources.Devices{{ResourceName: resource, DeviceIds: ids}}},
	}}
}

// ids are what follows the kind in names of CDI devices.
func ids(names []string) (out []string) {
	for _, name := range names {
		_, id, _ := strings.Cut(name, "=")
		out = append(out, id)
	}
	return out
}

func TestFindByKubelet(t *testing.T) {
	for name, test := range map[string]struct {
		change    func(*vfiotest.Kubelet)
		wantAsked []string
	}{
		"by name":            {func(*vfiotest.Kubelet) {}, []string{"Get"}},
		"with the gate shut": {func(k *vfiotest.Kubelet) { k.NoGet = true }, []string{"Get", "List"}},
		"of old":             {func(k *vfiotest.Kubelet) { k.Ancient = true }, []string{"Get", "List"}},
	} {
		t.Run(name, func(t *testing.T) {
			tree := vfiotest.New(t, true, vfiotest.HGXH100()...)
			gpus := tree.WriteSpec(t, "nvidia.com/GH100_H100_SXM5_80GB", tree.Addresses(isGPU)...)
			switches := tree.WriteSpec(t, "nvidia.com/nvswitch", tree.Addresses(isSwitch)...)
			other, whole := pod("other", "nvidia.com/nvswitch", ids(switches)[:1]...), pod("whole", "nvidia.com/GH100_H100_SXM5_80GB", ids(gpus)...)
			whole.Containers[1].Devices = append(whole.Containers[1].Devices, &podresources.Devices{ResourceName: "nvidia.com/nvswitch", DeviceIds: ids(switches)})
			k := vfiotest.Serve(t, other, whole)
			test.change(k)
			devices, err := tree.Host.Find(t.Context(), vfio.Request{
				Namespace: "ml", Pod: "whole", KubeletSocket: k.Socket, SpecDirs: []string{tree.SpecDir},
				// The kubelet knows better.
				Annotations: map[string]string{"cdi.k8s.io/x": "nvidia.com/none=1"},
			})
			if err != nil {
				t.Fatal(err)
			}
			if got := addresses(devices); !slices.Equal(got, tree.Addresses(nil)) {
				t.Errorf("found %q", got)
			}
			if !slices.Equal(k.Asked, test.wantAsked) {
				t.Errorf("the kubelet was asked for %q", k.Asked)
			}
		})
	}
}

func TestFindNames(t *testing.T) {
	for name, test := range map[string]struct {
		board       []vfiotest.Function
		chars       bool
		pod         *podresources.Pod
		annotations map[string]string
		nodes       []string
		want        []string
		wantErr     error
		says        string
	}{
		"nothing":                {board: vfiotest.H200(), nodes: []string{"/dev/fuse", "/dev/vfio/vfio"}},
		"a container's own node": {board: vfiotest.H200(), chars: true, nodes: []string{"/dev/vfio/devices/vfio0"}, want: []string{"0000:41:00.0"}},
		"a group's node":         {board: vfiotest.RTXPro6000(), nodes: []string{"/dev/vfio/21"}, want: []string{"0000:81:00.0", "0000:81:00.1"}},
		"several names":          {board: vfiotest.HGXH100()[:2], annotations: map[string]string{"cdi.k8s.io/b": "test.io/d=40,test.io/d=41"}, want: []string{"0000:1b:00.0", "0000:43:00.0"}},
		"a claim": {board: vfiotest.H200(), pod: &podresources.Pod{Name: "p", Namespace: "ml", Containers: []*podresources.Container{{
			DynamicResources: []*podresources.Claim{{ClaimResources: []*podresources.ClaimedResource{{CdiDevices: []*podresources.CDIDevice{{Name: "test.io/d=33"}}}}}},
		}}}, want: []string{"0000:41:00.0"}},
		"a network plugin's address":    {board: []vfiotest.Function{vfiotest.NIC("0000:3b:02.1", 9)}, pod: pod("p", "intel.com/sriov", "0000:3b:02.1"), want: []string{"0000:3b:02.1"}},
		"a plugin without hardware":     {board: vfiotest.H200(), pod: pod("p", "smarter-devices/fuse", "fuse-1")},
		"a pod without devices":         {board: vfiotest.H200(), pod: &podresources.Pod{Name: "p", Namespace: "ml"}},
		"an nvidia device without CDI":  {board: vfiotest.H200(), pod: pod("p", "nvidia.com/pgpu", "33"), wantErr: errdefs.ErrNotFound, says: "nvidia.com/pgpu=33"},
		"a wrong number":                {board: vfiotest.H200(), pod: pod("p", "test.io/d", "34"), wantErr: errdefs.ErrNotFound, says: `container "train"`},
		"a stranger":                    {board: vfiotest.H200(), pod: pod("q", "test.io/d", "33"), wantErr: errdefs.ErrNotFound, says: "does not know the pod"},
		"no name":                       {board: vfiotest.H200(), annotations: map[string]string{"cdi.k8s.io/b": "gpu0"}, wantErr: errdefs.ErrInvalidArgument, says: "cdi.k8s.io/b"},
		"an unknown group":              {board: vfiotest.H200(), nodes: []string{"/dev/vfio/99"}, wantErr: errdefs.ErrNotFound, says: "/dev/vfio/99"},
		"an unknown device":             {board: vfiotest.H200(), chars: true, nodes: []string{"/dev/vfio/devices/vfio9"}, wantErr: errdefs.ErrNotFound, says: "vfio9"},
		"a device of the host's driver": {board: vfiotest.H200(), annotations: map[string]string{"cdi.k8s.io/b": "host.io/gpu=0"}, wantErr: errdefs.ErrFailedPrecondition, says: "/dev/nvidia0"},
	} {
		t.Run(name, func(t *testing.T) {
			tree := vfiotest.New(t, test.chars, test.board...)
			tree.WriteSpec(t, "test.io/d", tree.Addresses(nil)...)
			hostSpec := `{"cdiVersion": "0.5.0", "kind": "host.io/gpu", "devices": [{"name": "0", "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia0"}]}}]}`
			if err := os.WriteFile(filepath.Join(tree.SpecDir, "host.json"), []byte(hostSpec), 0o600); err != nil {
				t.Fatal(err)
			}
			r := vfio.Request{Annotations: test.annotations, Nodes: test.nodes, SpecDirs: []string{tree.SpecDir}, KubeletSocket: "/nonexistent/kubelet.sock"}
			if test.pod != nil {
				r.Namespace, r.Pod, r.KubeletSocket = "ml", "p", vfiotest.Serve(t, test.pod).Socket
			}
			devices, err := tree.Host.Find(t.Context(), r)
			if got := addresses(devices); !slices.Equal(got, test.want) {
				t.Errorf("found %q", got)
			}
			if !errors.Is(err, test.wantErr) || err != nil && !strings.Contains(err.Error(), test.says) {
				t.Errorf("error is %v", err)
			}
		})
	}
}

// TestFindSilentKubelet has a socket that nobody listens on.
func TestFindSilentKubelet(t *testing.T) {
	tree := vfiotest.New(t, true, vfiotest.H200()...)
	socket := filepath.Join(t.TempDir(), "kubelet.sock")
	if err := os.WriteFile(socket, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := tree.Host.Find(t.Context(), vfio.Request{Namespace: "ml", Pod: "p", KubeletSocket: socket, SpecDirs: []string{tree.SpecDir}})
	if !errdefs.IsUnavailable(err) {
		t.Errorf("error is %v", err)
	}
}
