package container

import (
	"errors"
	"maps"
	"reflect"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/integration/require"
	agentpb "github.com/coffer-project/coffer/proto/agent"
	"github.com/coffer-project/coffer/proto/agentpolicy"
)

func TestPassedThrough(t *testing.T) {
	require.Root(t)
	const first = "nvidia.com/gpu=0"
	passed := []*agentpb.Device{{Id: "vfio0", Type: typeVFIO, ContainerPath: "/dev/vfio/devices/vfio0", Options: nil}}
	for name, tc := range map[string]struct {
		annotations map[string]string
		devices     []*agentpb.Device
		want        bool
		wantErr     error
	}{
		"one":                    {map[string]string{"cdi.k8s.io/vfio0": first}, passed, true, nil},
		"plugged and not wanted": {nil, passed, false, nil},
		"not in the guest":       {map[string]string{"cdi.k8s.io/vfio0": "nvidia.com/gpu=8"}, passed, false, errdefs.ErrNotFound},
		"twice":                  {map[string]string{"cdi.k8s.io/vfio0": first, "cdi.k8s.io/vfio1": first}, passed, false, errdefs.ErrInvalidArgument},
		"all":                    {map[string]string{"cdi.k8s.io/vfio0": "nvidia.com/gpu=all"}, passed, false, errdefs.ErrInvalidArgument},
		"for another engine":     {map[string]string{"cdi.k8s.io/plugin_device": first}, passed, false, errdefs.ErrInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakes(t)
			req := f.request("c1")
			req.Devices = tc.devices
			if req.OCI.Annotations == nil {
				req.OCI.Annotations = map[string]string{}
			}
			maps.Copy(req.OCI.Annotations, tc.annotations)
			if err := f.Create(t.Context(), req); !errors.Is(err, tc.wantErr) {
				t.Fatalf("got %v, want %v", err, tc.wantErr)
			}
			if tc.wantErr != nil {
				f.wantNothing(t, "c1")
				return
			}
			told := f.policy.told[len(f.policy.told)-1]
			var want *agentpolicy.CDI
			if tc.want {
				want = &agentpolicy.CDI{
					Devices: []string{first}, Env: []string{"NVIDIA_VISIBLE_DEVICES=void"}, Nodes: []string{"/dev/nvidia0"},
					Mounts: []string{"/run/kata-extensions/gpu/lib/x:/usr/lib/x"}, Hooks: []string{"/run/kata-extensions/gpu/bin/hook"},
				}
			}
			if !reflect.DeepEqual(told.CDI, want) || (len(told.Passed) == 1) != tc.want {
				t.Errorf("policy was told %+v, %q", told.CDI, told.Passed)
			}
		})
	}
}
