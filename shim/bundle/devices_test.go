package bundle

import (
	"errors"
	"os"
	"reflect"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"

	agentpb "github.com/coffer-project/coffer/proto/agent"
	ocipb "github.com/coffer-project/coffer/proto/oci"
)

// rule allows access to one block device.
func rule(major, minor int64, access string) specs.LinuxDeviceCgroup {
	return specs.LinuxDeviceCgroup{Allow: true, Type: "b", Major: &major, Minor: &minor, Access: access}
}

func TestBlockDevices(t *testing.T) {
	disk := specs.LinuxDevice{Path: "/dev/xvda", Type: "b", Major: 7, Minor: 3}
	for name, tc := range map[string]struct {
		devices []specs.LinuxDevice
		rules   []specs.LinuxDeviceCgroup
		want    []BlockDevice
		wantErr error
	}{
		"none":       {},
		"characters": {devices: []specs.LinuxDevice{{Path: "/dev/null", Type: "c", Major: 1, Minor: 3}}},
		"writable": {devices: []specs.LinuxDevice{disk}, rules: []specs.LinuxDeviceCgroup{rule(7, 3, "rwm")},
			want: []BlockDevice{{Path: "/dev/xvda", Major: 7, Minor: 3}}},
		"read-only": {devices: []specs.LinuxDevice{disk}, rules: []specs.LinuxDeviceCgroup{{Access: "rwm"}, rule(7, 3, "rm"), rule(7, 4, "rwm")},
			want: []BlockDevice{{Path: "/dev/xvda", Major: 7, Minor: 3, ReadOnly: true}}},
		"no rule": {devices: []specs.LinuxDevice{disk}, want: []BlockDevice{{Path: "/dev/xvda", Major: 7, Minor: 3, ReadOnly: true}}},
		"denied again": {devices: []specs.LinuxDevice{disk},
			rules: []specs.LinuxDeviceCgroup{rule(7, 3, "rwm"), {Type: "b", Major: new(int64(7)), Minor: new(int64(3)), Access: "rwm"}},
			want:  []BlockDevice{{Path: "/dev/xvda", Major: 7, Minor: 3, ReadOnly: true}}},
		"all of the host": {devices: []specs.LinuxDevice{disk}, rules: []specs.LinuxDeviceCgroup{rule(7, 3, "rwm"), {Allow: true, Access: "rwm"}}},
		"path":            {devices: []specs.LinuxDevice{{Path: "/dev/../x", Type: "b"}}, wantErr: errdefs.ErrInvalidArgument},
		"number":          {devices: []specs.LinuxDevice{{Path: "/dev/x", Type: "b", Major: 1 << 12}}, wantErr: errdefs.ErrInvalidArgument},
		"twice":           {devices: []specs.LinuxDevice{disk, disk}, wantErr: errdefs.ErrInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			b := &Bundle{spec: &specs.Spec{Linux: &specs.Linux{
				Devices: tc.devices, Resources: &specs.LinuxResources{Devices: tc.rules},
			}}}
			got, err := b.BlockDevices()
			if !errors.Is(err, tc.wantErr) || !reflect.DeepEqual(got, tc.want) {
				t.Errorf("got %+v, %v; want %+v, %v", got, err, tc.want, tc.wantErr)
			}
		})
	}
}

func TestHandDevices(t *testing.T) {
	in := &specs.Linux{
		Devices: []specs.LinuxDevice{
			{Path: "/dev/xvda", Type: "b", Major: 7, Minor: 3, FileMode: new(os.FileMode(0o640)), UID: new(uint32(1)), GID: new(uint32(6))},
			{Path: "/dev/xvdb", Type: "b", Major: 7, Minor: 4},
			{Path: "/dev/kvm", Type: "c", Major: 10, Minor: 232},
		},
		Resources: &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{rule(7, 3, "rm"), rule(7, 4, "rwm")}},
	}
	handed := BlockDevice{Path: "/dev/xvda", Major: 7, Minor: 3, ReadOnly: true}.Request("1e/01")
	if handed.GetId() != "1e/01" || handed.GetType() != "blk" || handed.GetContainerPath() != "/dev/xvda" {
		t.Errorf("the agent's device is %v", handed)
	}
	out, d := &ocipb.Linux{Resources: &ocipb.LinuxResources{}}, dropped{}
	handDevices(out, in, []*agentpb.Device{handed}, &d)
	if len(out.Devices) != 1 || out.Devices[0].GetPath() != "/dev/xvda" || out.Devices[0].GetFileMode() != 0o640 || out.Devices[0].GetGID() != 6 {
		t.Errorf("devices are %v", out.Devices)
	}
	if rules := out.Resources.Devices; len(rules) != 1 || rules[0].GetAccess() != "rm" || !rules[0].GetAllow() {
		t.Errorf("rules are %v", rules)
	}
	if want := (dropped{"linux.devices[/dev/xvdb]", "linux.devices[/dev/kvm]"}); !reflect.DeepEqual(d, want) {
		t.Errorf("dropped %v, want %v", d, want)
	}
}

// TestHandSoftDevices: what needs no hardware reaches a guest, also from a container that brings all devices of the host.
func TestHandSoftDevices(t *testing.T) {
	fuse := specs.LinuxDevice{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229, FileMode: new(os.FileMode(0o666))}
	tun := specs.LinuxDevice{Path: "/dev/net/tun", Type: "c", Major: 10, Minor: 200}
	kvm := specs.LinuxDevice{Path: "/dev/kvm", Type: "c", Major: 10, Minor: 232}
	disk := specs.LinuxDevice{Path: "/dev/x", Type: "b", Major: 10, Minor: 229}
	char := func(d specs.LinuxDevice, access string) specs.LinuxDeviceCgroup {
		return specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &d.Major, Minor: &d.Minor, Access: access}
	}
	for name, tc := range map[string]struct {
		rules []specs.LinuxDeviceCgroup
		want  []string // the accesses
		drops dropped
	}{
		"named": {
			[]specs.LinuxDeviceCgroup{{Access: "rwm"}, char(fuse, "rw"), char(tun, "rwm")},
			[]string{"rw", "rwm"}, dropped{"linux.devices[/dev/kvm]", "linux.devices[/dev/x]"},
		},
		"privileged": {
			[]specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}},
			[]string{"rwm", "rwm"}, dropped{"linux.resources.devices", "linux.devices"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			in := &specs.Linux{
				Devices: []specs.LinuxDevice{fuse, kvm, tun, disk}, Resources: &specs.LinuxResources{Devices: tc.rules},
			}
			out, d := &ocipb.Linux{Resources: &ocipb.LinuxResources{}}, dropped{}
			handDevices(out, in, nil, &d)
			var accesses []string
			for i, rule := range out.Resources.Devices {
				accesses = append(accesses, rule.GetAccess())
				if device := out.Devices[i]; !rule.GetAllow() || rule.GetMinor() != device.GetMinor() || rule.GetType() != "c" {
					t.Errorf("device %v has rule %v", device, rule)
				}
			}
			if len(out.Devices) != 2 || out.Devices[0].GetPath() != "/dev/fuse" || out.Devices[1].GetPath() != "/dev/net/tun" ||
				!reflect.DeepEqual(accesses, tc.want) {
				t.Errorf("devices are %v with %q", out.Devices, accesses)
			}
			if !reflect.DeepEqual(d, tc.drops) {
				t.Errorf("dropped %v, want %v", d, tc.drops)
			}
		})
	}
}

func TestCharDevices(t *testing.T) {
	devices := []specs.LinuxDevice{{Path: "/dev/vfio/12", Type: "c"}, {Path: "/dev/xvda", Type: "b"}}
	linux := &specs.Linux{Devices: devices, Resources: &specs.LinuxResources{}}
	b := &Bundle{spec: &specs.Spec{Linux: linux}}
	if got := b.CharDevices(); !reflect.DeepEqual(got, []string{"/dev/vfio/12"}) {
		t.Errorf("got %q", got)
	}
	linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
	if got := b.CharDevices(); got != nil {
		t.Errorf("a privileged container gets %q", got)
	}
}

func TestPCIDevices(t *testing.T) {
	devices := []PCIDevice{
		{Node: "/dev/vfio/devices/vfio12", Kind: "nvidia.com/gpu", Index: 3, Functions: []PCIFunction{{"0000:41:00.0", "10.3/00"}}},
		{Node: "/dev/vfio/7", Functions: []PCIFunction{{"0000:81:00.0", "10/00"}, {"0000:81:00.1", "10.1/00"}}},
	}
	for i, want := range []*agentpb.Device{
		{Id: "vfio12", Type: "vfio-pci-gk", ContainerPath: "/dev/vfio/devices/vfio12", Options: []string{"0000:41:00.0=10.3/00"}},
		{Id: "7", Type: "vfio-pci-gk", ContainerPath: "/dev/vfio/7", Options: []string{"0000:81:00.0=10/00", "0000:81:00.1=10.1/00"}},
	} {
		if got := devices[i].Request(); !proto.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	for name, test := range map[string]struct {
		devices []PCIDevice
		want    map[string]string
	}{
		"a pod that has none":       {nil, map[string]string{"a": "b", "cdi.k8s.io/host": "nvidia.com/pgpu=12"}},
		"a container that has none": {[]PCIDevice{}, map[string]string{"a": "b"}},
		"a gpu and a card":          {devices, map[string]string{"a": "b", "cdi.k8s.io/vfio12": "nvidia.com/gpu=3"}},
	} {
		got := map[string]string{"a": "b", "cdi.k8s.io/host": "nvidia.com/pgpu=12"}
		annotate(got, test.devices, new(dropped))
		if !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: got %v, want %v", name, got, test.want)
		}
	}
	in := &specs.Linux{Devices: []specs.LinuxDevice{{Path: "/dev/vfio/7", Type: "c"}, {Path: "/dev/ttyS0", Type: "c"}}}
	out, d := &ocipb.Linux{Resources: &ocipb.LinuxResources{}}, new(dropped)
	handDevices(out, in, []*agentpb.Device{devices[1].Request()}, d)
	if len(out.GetDevices()) != 0 || len(out.GetResources().GetDevices()) != 0 {
		t.Errorf("the host's nodes are handed on: %v", out)
	}
}
