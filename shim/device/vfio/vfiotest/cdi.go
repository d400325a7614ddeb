package vfiotest

import (
	"encoding/json"
	"os"
	"path"
	"path/filepath"
	"testing"
)

// WriteSpec writes the CDI specification of a class of devices, as NVIDIA's plugin for sandboxes does: a device is named by the last
// part of its node, and without iommufd it has the node of the container, too. It returns the devices' full names.
func (tree *Tree) WriteSpec(tb testing.TB, kind string, addresses ...string) (names []string) {
	tb.Helper()
	type node struct {
		Path        string `json:"path"`
		Permissions string `json:"permissions"`
	}
	type edits struct {
		DeviceNodes []node `json:"deviceNodes"`
	}
	type device struct {
		Name  string `json:"name"`
		Edits edits  `json:"containerEdits"`
	}
	spec := struct {
		Version string   `json:"cdiVersion"`
		Kind    string   `json:"kind"`
		Devices []device `json:"devices"`
	}{Version: "0.5.0", Kind: kind}
	for _, address := range addresses {
		d := device{Name: path.Base(tree.Node(address)), Edits: edits{[]node{{tree.Node(address), "mrw"}}}}
		if path.Dir(tree.Node(address)) == "/dev/vfio" {
			d.Edits.DeviceNodes = append([]node{{"/dev/vfio/vfio", "mrw"}}, d.Edits.DeviceNodes...)
		}
		spec.Devices = append(spec.Devices, d)
		names = append(names, kind+"="+d.Name)
	}
	raw, err := json.Marshal(spec)
	must(tb, err)
	vendor, class := path.Split(kind)
	must(tb, os.WriteFile(filepath.Join(tree.SpecDir, path.Clean(vendor)+"-"+class+".json"), raw, 0o600))
	return names
}

// Addresses are those of the machine's functions that match, bridges aside.
func (tree *Tree) Addresses(match func(Function) bool) (addresses []string) {
	for _, f := range tree.functions {
		if f.Class != classBridge && (match == nil || match(f)) {
			addresses = append(addresses, f.Address)
		}
	}
	return addresses
}
