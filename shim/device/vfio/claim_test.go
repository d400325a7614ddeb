package vfio_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/shim/device/vfio"
	"github.com/coffer-project/coffer/shim/device/vfio/vfiotest"
)

const (
	disk  = "0000:01:00.0"
	spare = "0000:02:00.0"
)

func manager(t *testing.T, tree *vfiotest.Tree) *vfio.Manager {
	t.Helper()
	return &vfio.Manager{Host: tree.Host, Dir: filepath.Join(t.TempDir(), "devices"), Bind: true, MaxDevices: 32}
}

// find asks for what annotations name.
func find(t *testing.T, tree *vfiotest.Tree, names ...string) []vfio.Device {
	t.Helper()
	devices, err := tree.Host.Find(t.Context(), vfio.Request{
		Annotations: map[string]string{vfio.AnnotationPrefix + "test": strings.Join(names, ",")}, SpecDirs: []string{tree.SpecDir},
	})
	if err != nil {
		t.Fatal(err)
	}
	return devices
}

// disks is a machine with two disks, each in its group, and the devices of a pod that asks for both.
func disks(t *testing.T, chars bool) (*vfiotest.Tree, []vfio.Device) {
	t.Helper()
	tree := vfiotest.New(t, chars, vfiotest.Bridge("0000:00:1c.0", 4), vfiotest.NVMe(disk, 4), vfiotest.NVMe(spare, 5))
	return tree, find(t, tree, tree.WriteSpec(t, "coffer.io/disk", disk, spare)...)
}

func owner(name string) vfio.Owner { return vfio.Owner{Dir: "/run/coffer/" + name, Pod: name} }

func reserve(t *testing.T, m *vfio.Manager, name string, devices []vfio.Device) *vfio.Claim {
	t.Helper()
	claim, err := m.Reserve(t.Context(), owner(name), devices)
	if err != nil {
		t.Fatal(err)
	}
	return claim
}

// checkFree fails unless the machine is as it was, and the devices are nobody's.
func checkFree(t *testing.T, tree *vfiotest.Tree, m *vfio.Manager) {
	t.Helper()
	for _, address := range []string{disk, spare} {
		if got := tree.Driver(address); got != "nvme" {
			t.Errorf("driver of %s is %q", address, got)
		}
		if got := tree.Override(address); got != "" {
			t.Errorf("override of %s is %q", address, got)
		}
	}
	if records, _ := filepath.Glob(filepath.Join(m.Dir, "*.json")); len(records) > 0 {
		t.Errorf("records are left: %q", records)
	}
}

func TestClaimLife(t *testing.T) {
	tree, devices := disks(t, false)
	m := manager(t, tree)
	claim := reserve(t, m, "a", devices)
	if got := tree.Driver(disk); got != "nvme" {
		t.Errorf("a reserved device is bound to %q", got)
	}
	for range 2 {
		added, err := claim.Add(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(added) != 2 || added[0].Address != disk || added[1].Address != spare || added[0].OwnNode || added[0].Claim == nil {
			t.Errorf("added %+v", added)
		}
		if added[0].VendorID != 0x1b36 || added[0].DeviceID != 0x0010 || len(added[0].BARs) != 1 || added[0].BARs[0].Bytes != 16<<10 {
			t.Errorf("added %+v", added[0])
		}
	}
	if got := tree.Driver(disk); got != "vfio-pci" {
		t.Errorf("an added device is bound to %q", got)
	}
	if got := claim.Nodes(); !slices.Equal(got, []string{"/dev/vfio/4", "/dev/vfio/5"}) {
		t.Errorf("nodes are %q", got)
	}
	if got := claim.Behind("/dev/vfio/5"); len(got) != 1 || got[0].Address != spare {
		t.Errorf("behind group 5 is %v", got)
	}
	for range 2 {
		if err := claim.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	checkFree(t, tree, m)
	if tree.Resets(disk) != 1 || tree.Resets(spare) != 1 {
		t.Errorf("resets: %d, %d", tree.Resets(disk), tree.Resets(spare))
	}
	if _, err := claim.Add(t.Context()); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("adding what was removed: %v", err)
	}
}

func TestClaimOfOthers(t *testing.T) {
	tree, devices := disks(t, false)
	m := manager(t, tree)
	first := reserve(t, m, "a", devices[:1])
	_, err := m.Reserve(t.Context(), owner("b"), devices)
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "by pod a") {
		t.Errorf("error is %v", err)
	}
	second := reserve(t, m, "c", devices[1:]) // the failed one has left nothing
	for _, c := range []*vfio.Claim{first, second} {
		if err := c.Remove(t.Context()); err != nil {
			t.Error(err)
		}
	}
	checkFree(t, tree, m)
}

// TestClaimHeldByVM has a process inherit the claim, as a VM's monitor does.
func TestClaimHeldByVM(t *testing.T) {
	tree, devices := disks(t, false)
	m := manager(t, tree)
	claim := reserve(t, m, "a", devices[:1])
	added, err := claim.Add(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	monitor := exec.Command("cat")
	monitor.ExtraFiles = []*os.File{added[0].Claim}
	stdin, err := monitor.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := monitor.Start(); err != nil {
		t.Fatal(err)
	}
	if err := claim.Remove(t.Context()); !errdefs.IsUnavailable(err) {
		t.Errorf("removing under a VM that runs: %v", err)
	}
	// The shim has let go of it, and the VM has not.
	if _, err := m.Reserve(t.Context(), owner("b"), devices[:1]); !errdefs.IsUnavailable(err) {
		t.Errorf("reserving under a VM that runs: %v", err)
	}
	if err := m.Recover(t.Context(), owner("a").Dir); !errdefs.IsUnavailable(err) {
		t.Errorf("recovering under a VM that runs: %v", err)
	}
	if got := tree.Driver(disk); got != "vfio-pci" || tree.Resets(disk) != 0 {
		t.Errorf("a device in use is bound to %q and was reset %d times", got, tree.Resets(disk))
	}
	stdin.Close()
	if err := monitor.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := claim.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	checkFree(t, tree, m)
}

// die ends the claim as the kernel ends it with its process.
func die(t *testing.T, claim *vfio.Claim) {
	t.Helper()
	added, err := claim.Add(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range added {
		if err := d.Claim.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRecover(t *testing.T) {
	tree, devices := disks(t, false)
	m := manager(t, tree)
	die(t, reserve(t, m, "a", devices))
	if err := m.Recover(t.Context(), owner("other").Dir); err != nil || tree.Driver(disk) != "vfio-pci" {
		t.Errorf("recovered another pod's device: %v", err)
	}
	for range 2 {
		if err := m.Recover(t.Context(), owner("a").Dir); err != nil {
			t.Fatal(err)
		}
	}
	checkFree(t, tree, m)
	if tree.Resets(disk) != 1 {
		t.Errorf("reset %d times", tree.Resets(disk))
	}
}

// TestTakeOver lets the next pod find what a dead one has left.
func TestTakeOver(t *testing.T) {
	tree, devices := disks(t, false)
	m := manager(t, tree)
	dead := reserve(t, m, "a", devices)
	die(t, dead)
	claim := reserve(t, m, "b", devices)
	if tree.Driver(disk) != "nvme" || tree.Resets(disk) != 1 {
		t.Errorf("the device was not put back: %q, %d resets", tree.Driver(disk), tree.Resets(disk))
	}
	if err := m.Recover(t.Context(), owner("a").Dir); err != nil {
		t.Errorf("recovering what another pod has: %v", err)
	}
	if err := dead.Remove(t.Context()); err != nil && !errors.Is(err, os.ErrClosed) {
		t.Errorf("removing what another pod has: %v", err)
	}
	if _, err := claim.Add(t.Context()); err != nil || tree.Driver(disk) != "vfio-pci" {
		t.Errorf("the new pod's claim: %v", err)
	}
	if err := claim.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	checkFree(t, tree, m)
}

func TestReserveRefuses(t *testing.T) {
	plain := []vfiotest.Function{vfiotest.NVMe(disk, 4)}
	for name, test := range map[string]struct {
		machine []vfiotest.Function
		change  func(*vfio.Manager)
		wantErr error
		says    string
	}{
		"not bound":    {plain, func(m *vfio.Manager) { m.Bind = false }, errdefs.ErrFailedPrecondition, "devices.bind"},
		"too many":     {plain, func(m *vfio.Manager) { m.MaxDevices = 0 }, errdefs.ErrFailedPrecondition, "devices.pcie_root_port"},
		"shared group": {vfiotest.SharedSlots(), nil, errdefs.ErrFailedPrecondition, "0000:02:00.0 [1b36:0010, class 010802, nvme], 0000:03:00.0"},
	} {
		t.Run(name, func(t *testing.T) {
			tree := vfiotest.New(t, false, test.machine...)
			m := manager(t, tree)
			if test.change != nil {
				test.change(m)
			}
			first := tree.Addresses(nil)[0]
			_, err := m.Reserve(t.Context(), owner("a"), find(t, tree, tree.WriteSpec(t, "coffer.io/disk", first)...))
			if !errors.Is(err, test.wantErr) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("error is %v", err)
			}
			if tree.Driver(first) != "nvme" {
				t.Errorf("driver is %q", tree.Driver(first))
			}
			if records, _ := filepath.Glob(filepath.Join(m.Dir, "*.json")); len(records) > 0 {
				t.Errorf("records are left: %q", records)
			}
		})
	}
}

func TestVanishedDevice(t *testing.T) {
	tree, devices := disks(t, false)
	m := manager(t, tree)
	claim := reserve(t, m, "a", devices[:1])
	if _, err := claim.Add(t.Context()); err != nil {
		t.Fatal(err)
	}
	tree.Vanish(t, disk)
	if err := claim.Remove(t.Context()); err != nil {
		t.Errorf("error is %v", err)
	}
}

func TestReserveStops(t *testing.T) {
	tree, devices := disks(t, false)
	m := manager(t, tree)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := m.Reserve(ctx, owner("a"), devices); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
	checkFree(t, tree, m)
}
