package container

import (
	"encoding/json"
	"errors"
	"os"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coffer-project/coffer/integration/require"
	agentpb "github.com/coffer-project/coffer/proto/agent"
	"github.com/coffer-project/coffer/proto/oci"
)

func blockDevice(address, path string) *agentpb.Device {
	return &agentpb.Device{Id: address, Type: "blk", ContainerPath: path}
}

func TestDevices(t *testing.T) {
	require.Root(t)
	const path = "/dev/xvda"
	for name, tc := range map[string]struct {
		devices []*agentpb.Device
		want    string // what the container may do with the disk
		wantErr error
	}{
		"disk":           {[]*agentpb.Device{blockDevice("1e/01", path)}, "rwm", nil},
		"read-only disk": {[]*agentpb.Device{blockDevice("1e/02", path)}, "rm", nil},
		"none":           {nil, "", errdefs.ErrInvalidArgument},
		"not there":      {[]*agentpb.Device{blockDevice("1e/03", path)}, "", errdefs.ErrNotFound},
		"address":        {[]*agentpb.Device{blockDevice("../1e", path)}, "", errdefs.ErrInvalidArgument},
		"type":           {[]*agentpb.Device{{Id: "1e/01", Type: "scsi", ContainerPath: path}}, "", errdefs.ErrInvalidArgument},
		"options":        {[]*agentpb.Device{{Id: "1e/01", Type: "blk", ContainerPath: path, Options: []string{"x"}}}, "", errdefs.ErrInvalidArgument},
		"twice":          {[]*agentpb.Device{blockDevice("1e/01", path), blockDevice("1e/02", path)}, "", errdefs.ErrInvalidArgument},
		"not listed":     {[]*agentpb.Device{blockDevice("1e/01", path), blockDevice("1e/02", "/dev/xvdb")}, "", errdefs.ErrInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakes(t)
			req := f.request("c1")
			req.Devices = tc.devices
			req.OCI.Linux.Devices = []*oci.LinuxDevice{{Path: path, Type: "b", Major: 7, Minor: 3}}
			if err := f.Create(t.Context(), req); !errors.Is(err, tc.wantErr) {
				t.Fatalf("got %v, want %v", err, tc.wantErr)
			}
			if tc.wantErr != nil {
				f.wantNothing(t, "c1")
				return
			}
			raw, err := os.ReadFile(f.Base + "/c1/config.json")
			must(t, err)
			var s specs.Spec
			must(t, json.Unmarshal(raw, &s))
			if d := s.Linux.Devices[0]; d.Major != 254 || d.Minor == 3 {
				t.Errorf("the device has the host's number: %+v", d)
			}
			if rules := s.Linux.Resources.Devices; len(rules) != 2 || rules[1].Access != tc.want {
				t.Errorf("rules: %+v", rules)
			}
		})
	}
}
