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

// buildDevices rebuilds the devices. A block device must be one of disks, the paths at which the container sees disks that were
// plugged in; its number is the host's until SetDisk.
func buildDevices(in []*oci.LinuxDevice, disks map[string]bool) ([]specs.LinuxDevice, error) {
	if len(in) > MaxDevices {
		return nil, refuse("%d devices: at most %d are allowed", len(in), MaxDevices)
	}
	var out []specs.LinuxDevice
	found := map[string]bool{}
	for _, d := range in {
		if err := checkPath("device path", d.GetPath()); err != nil {
			return nil, err
		}
		if _, twice := found[d.GetPath()]; twice {
			return nil, refuse("device %.200q is named twice", d.GetPath())
		}
		isDisk := d.GetType() == typeBlock && disks[d.GetPath()]
		_, isHarmless := harmless[deviceNumber{d.GetMajor(), d.GetMinor()}]
		if !isDisk && (!isHarmless || d.GetType() != "c") {
			return nil, refuse("device %.64q %d:%d is not allowed in this guest", d.GetType(), d.GetMajor(), d.GetMinor())
		}
		found[d.GetPath()] = isDisk
		mode := os.FileMode(d.GetFileMode()) & os.ModePerm
		if mode == 0 {
			mode = 0o666
		}
		uid, gid := d.GetUID(), d.GetGID()
		out = append(out, specs.LinuxDevice{Path: d.GetPath(), Type: d.GetType(), Major: d.GetMajor(), Minor: d.GetMinor(),
			FileMode: &mode, UID: &uid, GID: &gid})
	}
	for path := range disks {
		if !found[path] {
			return nil, refuse("disk %.200q is not in the specification", path)
		}
	}
	return out, nil
}

// SetDisk gives the block device at path the number that it has in this guest, and lets the container use it. What the host says of
// access has been made true on its side: a disk that must not be written to was plugged in so.
func SetDisk(s *specs.Spec, path string, major, minor int64, readOnly bool) error {
	for i := range s.Linux.Devices {
		if d := &s.Linux.Devices[i]; d.Path == path && d.Type == typeBlock {
			d.Major, d.Minor = major, minor
			access := "rwm"
			if readOnly {
				access = "rm"
			}
			s.Linux.Resources.Devices = append(s.Linux.Resources.Devices,
				specs.LinuxDeviceCgroup{Allow: true, Type: typeBlock, Major: &major, Minor: &minor, Access: access})
			return nil
		}
	}
	return refuse("the specification has no disk at %.200q", path)
}

// AddDisk gives the container a block device that the specification does not have.
func AddDisk(s *specs.Spec, path string, major, minor int64, readOnly bool) error {
	for _, d := range s.Linux.Devices {
		if d.Path == path {
			return refuse("the specification has something else at %.200q", path)
		}
	}
	mode, root := os.FileMode(0o600), uint32(0)
	s.Linux.Devices = append(s.Linux.Devices, specs.LinuxDevice{Path: path, Type: typeBlock, FileMode: &mode, UID: &root, GID: &root})
	return SetDisk(s, path, major, minor, readOnly)
}

const typeBlock = "b"

// deviceRules lets a container use the devices that it was given and no other; disks come later, see SetDisk. runc adds those that
// every container has. The host's own rules name devices of the host's kernel and have no meaning here.
func deviceRules(devices []specs.LinuxDevice) []specs.LinuxDeviceCgroup {
	rules := []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	for _, d := range devices {
		if d.Type == typeBlock {
			continue
		}
		major, minor := d.Major, d.Minor
		rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: d.Type, Major: &major, Minor: &minor, Access: "rwm"})
	}
	return rules
}
