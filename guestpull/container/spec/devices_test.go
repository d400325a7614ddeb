package spec

import (
	"errors"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/oci"
)

func TestDisks(t *testing.T) {
	disk := &oci.LinuxDevice{Path: "/dev/xvda", Type: "b", Major: 7, Minor: 3, FileMode: 0o640, GID: 6}
	for name, tc := range map[string]struct {
		devices  []*oci.LinuxDevice
		disks    map[string]bool
		readOnly bool
		access   string
		wantErr  error
	}{
		"writable":       {devices: []*oci.LinuxDevice{disk}, disks: map[string]bool{"/dev/xvda": true}, access: "rwm"},
		"read-only":      {devices: []*oci.LinuxDevice{disk}, disks: map[string]bool{"/dev/xvda": true}, readOnly: true, access: "rm"},
		"not plugged in": {devices: []*oci.LinuxDevice{disk}, wantErr: errdefs.ErrInvalidArgument},
		"another path":   {devices: []*oci.LinuxDevice{disk}, disks: map[string]bool{"/dev/xvdb": true}, wantErr: errdefs.ErrInvalidArgument},
		"not listed":     {disks: map[string]bool{"/dev/xvda": true}, wantErr: errdefs.ErrInvalidArgument},
		"twice":          {devices: []*oci.LinuxDevice{disk, disk}, disks: map[string]bool{"/dev/xvda": true}, wantErr: errdefs.ErrInvalidArgument},
		"as a character device": {devices: []*oci.LinuxDevice{{Path: "/dev/xvda", Type: "c", Major: 1, Minor: 1}},
			disks: map[string]bool{"/dev/xvda": true}, wantErr: errdefs.ErrInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			in, o := honest(), options()
			in.Linux.Devices, o.Disks = tc.devices, tc.disks
			s, err := Build(in, o)
			if !errors.Is(err, tc.wantErr) {
				t.Fatalf("got %v, want %v", err, tc.wantErr)
			}
			if tc.wantErr != nil {
				return
			}
			if rules := s.Linux.Resources.Devices; len(rules) != 1 || rules[0].Allow {
				t.Errorf("before the guest's numbers are known: %+v", rules)
			}
			if err := SetDisk(s, "/dev/xvda", 254, 16, tc.readOnly); err != nil {
				t.Fatal(err)
			}
			d := s.Linux.Devices[0]
			if d.Major != 254 || d.Minor != 16 || *d.FileMode != 0o640 || *d.GID != 6 {
				t.Errorf("device %+v", d)
			}
			rules := s.Linux.Resources.Devices
			if len(rules) != 2 || *rules[1].Major != 254 || *rules[1].Minor != 16 || rules[1].Access != tc.access || rules[1].Type != "b" {
				t.Errorf("rules %+v", rules)
			}
			if err := SetDisk(s, "/dev/other", 254, 16, false); !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Errorf("a disk that was not asked for: %v", err)
			}
		})
	}
}
