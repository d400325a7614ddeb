package spec

import (
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coffer-project/coffer/proto/oci"
)

type deviceNumber struct{ major, minor int64 }

// harmless are the character devices that belong to no hardware of the guest. runc makes the first six in every container anyway.
var harmless = map[deviceNumber]string{
	{1, 3}: "null", {1, 5}: "zero", {1, 7}: "full", {1, 8}: "random", {1, 9}: "urandom", {5, 0}: "tty",
	{5, 2}: "ptmx", {10, 229}: "fuse", {10, 200}: "tun",
}

func buildDevices(in []*oci.LinuxDevice) ([]specs.LinuxDevice, error) {
	if len(in) > maxDevices {
		return nil, refuse("%d devices: at most %d are allowed", len(in), maxDevices)
	}
	var out []specs.LinuxDevice
	for _, d := range in {
		if err := checkPath("device path", d.GetPath()); err != nil {
			return nil, err
		}
		if _, ok := harmless[deviceNumber{d.GetMajor(), d.GetMinor()}]; !ok || d.GetType() != "c" {
			return nil, refuse("device %.64q %d:%d is not allowed in this guest", d.GetType(), d.GetMajor(), d.GetMinor())
		}
		mode := os.FileMode(d.GetFileMode()) & os.ModePerm
		if mode == 0 {
			mode = 0o666
		}
		uid, gid := d.GetUID(), d.GetGID()
		out = append(out, specs.LinuxDevice{Path: d.GetPath(), Type: "c", Major: d.GetMajor(), Minor: d.GetMinor(),
			FileMode: &mode, UID: &uid, GID: &gid})
	}
	return out, nil
}

// deviceRules lets a container use the devices that it was given and no other. runc adds those that every container has. The host's
// own rules name devices of the host's kernel and have no meaning here.
func deviceRules(devices []specs.LinuxDevice) []specs.LinuxDeviceCgroup {
	rules := []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	for _, d := range devices {
		major, minor := d.Major, d.Minor
		rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: d.Type, Major: &major, Minor: &minor, Access: "rwm"})
	}
	return rules
}
