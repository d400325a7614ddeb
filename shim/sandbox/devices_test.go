package sandbox

import (
	"os"
	"slices"
	"testing"

	"github.com/coffer-project/coffer/shim/device/vfio"
	"github.com/coffer-project/coffer/shim/device/vfio/vfiotest"
	"github.com/coffer-project/coffer/shim/vm"
	"github.com/coffer-project/coffer/shim/vm/vmtest"
)

// TestReapDevices gives back a disk that a killed shim had given to its VM.
func TestReapDevices(t *testing.T) {
	const disk = "0000:01:00.0"
	dir := stateDir(t)
	tree := vfiotest.New(t, false, vfiotest.NVMe(disk, 3))
	devices, err := tree.Host.Find(t.Context(), vfio.Request{
		Annotations: map[string]string{"cdi.k8s.io/x": tree.WriteSpec(t, "coffer.io/disk", disk)[0]}, SpecDirs: []string{tree.SpecDir},
	})
	if err != nil {
		t.Fatal(err)
	}
	m := &vfio.Manager{Host: tree.Host, Dir: devicesDir(dir), Bind: true, MaxDevices: 1}
	claim, err := m.Reserve(t.Context(), vfio.Owner{Dir: dir, Pod: "p"}, devices)
	if err != nil {
		t.Fatal(err)
	}
	added, err := claim.Add(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := Reap(t.Context(), &vmtest.Driver{}, &detacher{}, tree.Host, dir); err == nil {
		t.Error("reaped while the device is held")
	}
	if _, err := os.Stat(dir); err != nil || tree.Driver(disk) != "vfio-pci" {
		t.Errorf("%v, driver is %q", err, tree.Driver(disk))
	}
	if err := added[0].Claim.Close(); err != nil {
		t.Fatal(err)
	}
	if err := Reap(t.Context(), &vmtest.Driver{}, &detacher{}, tree.Host, dir); err != nil || tree.Driver(disk) != "nvme" {
		t.Errorf("%v, driver is %q", err, tree.Driver(disk))
	}
}

func TestNodesOf(t *testing.T) {
	got := nodesOf([]vm.PCIDevice{{NUMANode: 1}, {NUMANode: -1}, {NUMANode: 0}, {NUMANode: 1}})
	if !slices.Equal(got, []int{0, 1}) {
		t.Errorf("nodes are %v", got)
	}
}
