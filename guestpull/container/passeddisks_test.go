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

func TestPassedDisks(t *testing.T) {
	require.Root(t)
	const node = "/dev/vfio/12"
	for name, tc := range map[string]struct {
		options []string
		nodes   []*oci.LinuxDevice
		want    string // where the container has a disk
		wantErr error
	}{
		"disk":            {[]string{"0000:41:00.0=1e/01"}, nil, "/dev/nvme0n1", nil},
		"no disk":         {[]string{"0000:41:00.0=10.1/00"}, nil, "", nil},
		"nothing":         {nil, nil, "", nil},
		"not there":       {[]string{"0000:41:00.0=11/00"}, nil, "", errdefs.ErrNotFound},
		"no guest path":   {[]string{"0000:41:00.0"}, nil, "", errdefs.ErrInvalidArgument},
		"bad guest path":  {[]string{"0000:41:00.0=../11"}, nil, "", errdefs.ErrInvalidArgument},
		"the same name":   {[]string{"0000:41:00.0=1e/01", "0000:41:00.1=1e/01"}, nil, "", errdefs.ErrInvalidArgument},
		"the host's node": {[]string{"0000:41:00.0=1e/01"}, []*oci.LinuxDevice{{Path: node, Type: "c", Major: 240, Minor: 1}}, "", errdefs.ErrInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakes(t)
			req := f.request("c1")
			req.Devices = []*agentpb.Device{{Id: "12", Type: "vfio-pci-gk", ContainerPath: node, Options: tc.options}}
			req.OCI.Linux.Devices = tc.nodes
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
			got := ""
			for _, d := range s.Linux.Devices {
				got += d.Path
				if d.Major != 254 || d.Minor != 16 || d.Type != "b" {
					t.Errorf("device: %+v", d)
				}
			}
			if rules := s.Linux.Resources.Devices; got != tc.want || len(rules) != len(s.Linux.Devices)+1 {
				t.Errorf("device %q, want %q; rules: %+v", got, tc.want, rules)
			}
		})
	}
}
