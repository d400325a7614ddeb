package qemu

import (
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/integration/require"
	"github.com/coffer-project/coffer/shim/device/vfio"
	"github.com/coffer-project/coffer/shim/device/vfio/vfiotest"
	"github.com/coffer-project/coffer/shim/vm"
	"github.com/coffer-project/coffer/shim/vm/qemu/qemutest"
)

// boards are the machines whose devices have golden command lines, and what a pod asks for there.
var boards = map[string]struct {
	board []vfiotest.Function
	chars bool
	match func(vfiotest.Function) bool
}{
	"hgx-h100":              {board: vfiotest.HGXH100(), chars: true},
	"hgx-h200":              {board: vfiotest.HGXH200(), chars: true},
	"hgx-h100-one-gpu":      {board: vfiotest.HGXH100(), chars: true, match: func(f vfiotest.Function) bool { return f.Address == "0000:43:00.0" }},
	"hgx-b200":              {board: vfiotest.HGXB200(), chars: true},
	"h200":                  {board: vfiotest.H200(), chars: true},
	"h200-group":            {board: vfiotest.H200()},
	"rtx-pro-6000":          {board: vfiotest.RTXPro6000(), match: func(f vfiotest.Function) bool { return f.Driver == "nvidia" }},
	"network-card-function": {board: []vfiotest.Function{vfiotest.NIC("0000:3b:02.1", 91)}, chars: true},
	"disk-bound-by-us":      {board: []vfiotest.Function{vfiotest.NVMe("0000:01:00.0", 4)}},
}

// claimed takes devices the way that a pod takes them: from a CDI specification to the VM's configuration.
func claimed(tb testing.TB, name string) []vm.PCIDevice {
	tb.Helper()
	b := boards[name]
	tree := vfiotest.New(tb, b.chars, b.board...)
	names := tree.WriteSpec(tb, "nvidia.com/pgpu", tree.Addresses(b.match)...)
	devices, err := tree.Host.Find(tb.Context(), vfio.Request{
		Annotations: map[string]string{"cdi.k8s.io/pod": strings.Join(names, ",")}, SpecDirs: []string{tree.SpecDir},
	})
	if err != nil {
		tb.Fatal(err)
	}
	manager := &vfio.Manager{Host: tree.Host, Dir: filepath.Join(tb.TempDir(), "devices"), Bind: true, MaxDevices: 32, Confidential: true}
	claim, err := manager.Reserve(tb.Context(), vfio.Owner{Dir: "/run/coffer/pod", Pod: "pod"}, devices)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := claim.Remove(context.WithoutCancel(tb.Context())); err != nil {
			tb.Error(err)
		}
	})
	added, err := claim.Add(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	return added
}

func TestDevicesGolden(t *testing.T) {
	for name := range boards {
		t.Run(name, func(t *testing.T) { checkGolden(t, "devices-"+name, pciArguments(claimed(t, name))) })
	}
}

// TestDevicesAgainstQEMU holds each golden file against the installed QEMU, option by option.
func TestDevicesAgainstQEMU(t *testing.T) {
	q := qemutest.Start(t, require.VM(t))
	for name := range boards {
		devices := claimed(t, name)
		faults, checked := q.Faults(pciArguments(devices))
		if want := 2*len(devices) + objects(devices); checked != want {
			t.Errorf("%s: %d options were checked, not %d", name, checked, want)
		}
		for _, err := range faults {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// objects are those that the devices share.
func objects(devices []vm.PCIDevice) int {
	if devices[0].OwnNode {
		return 1
	}
	return 0
}

// TestRootPorts lets QEMU make the ports of the largest board: their places, and the numbers of their chassis, must be free.
func TestRootPorts(t *testing.T) {
	require.VM(t)
	many := claimed(t, "hgx-b200")
	for i := range 20 {
		many = append(many, many[i])
	}
	args := []string{"-nodefaults", "-no-user-config", "-display", "none", "-S", "-machine", "q35", "-accel", "tcg", "-qmp", "stdio"}
	all := pciArguments(many)
	for i := 0; i < len(all); i += 2 {
		// Neither the devices nor the kernel's side of iommufd are here.
		if !strings.HasPrefix(all[i+1], "vfio-pci") && all[i] != "-object" {
			args = append(args, all[i], all[i+1])
		}
	}
	cmd := exec.CommandContext(t.Context(), qemuBinary, args...)
	cmd.Stdin = strings.NewReader(`{"execute":"qmp_capabilities"}{"execute":"query-pci"}{"execute":"quit"}`)
	text, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	if got := strings.Count(string(text), `"qdev_id": "rp`); got != len(many) {
		t.Errorf("QEMU made %d of %d ports: %s", got, len(many), text)
	}
}

func TestPCIPath(t *testing.T) {
	for i, want := range map[int]string{0: "10/00", 1: "10.1/00", 7: "10.7/00", 8: "11/00", maxPCIDevices - 1: "1d.7/00"} {
		if got := pciPath(i); got != want {
			t.Errorf("path of device %d is %s, want %s", i, got, want)
		}
	}
	i := &Instance{config: vm.Config{PCIDevices: claimed(t, "hgx-h100")}}
	if got, err := i.PCIPath("0000:05:00.0"); got != "10/00" || err != nil {
		t.Errorf("got %s, %v", got, err)
	}
	if _, err := i.PCIPath("0000:ff:00.0"); !errdefs.IsNotFound(err) {
		t.Errorf("got %v", err)
	}
}

func TestCheckRoom(t *testing.T) {
	for name, test := range map[string]struct {
		accelerator Accelerator
		memoryMiB   uint32
		board       string
		hostBits    int
		wantErr     error
	}{
		"no devices":        {TCG, 1 << 20, "", 0, nil},
		"disk":              {TCG, 512, "disk-bound-by-us", 0, nil},
		"one gpu, emulated": {TCG, 512, "hgx-h100-one-gpu", 0, nil},
		"board, emulated":   {TCG, 512, "hgx-h200", 0, errdefs.ErrFailedPrecondition},
		"board":             {KVM, 2 << 20, "hgx-h200", 46, nil},
		"board, old host":   {KVM, 2 << 20, "hgx-h200", 39, errdefs.ErrFailedPrecondition},
		"board, no figure":  {KVM, 2 << 20, "hgx-h200", 0, nil},
	} {
		t.Run(name, func(t *testing.T) {
			m := machine{accelerator: test.accelerator, memoryMiB: test.memoryMiB}
			if test.board != "" {
				m.pci = claimed(t, test.board)
			}
			if err := m.checkRoom(test.hostBits); !errors.Is(err, test.wantErr) {
				t.Errorf("error is %v, want %v", err, test.wantErr)
			}
		})
	}
	tooMuch := machine{accelerator: KVM, pci: slices.Repeat(claimed(t, "hgx-h200"), 5)}
	if err := tooMuch.checkRoom(52); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("20 TiB fit: %v", err)
	}
}

func TestWideModel(t *testing.T) {
	board, disk := claimed(t, "hgx-h100"), claimed(t, "disk-bound-by-us")
	for name, test := range map[string]struct {
		m    machine
		want string
	}{
		"the host's own":    {machine{accelerator: KVM, pci: board}, "host"},
		"a model":           {machine{accelerator: KVM, cpuModel: "EPYC-v4", pci: board}, "EPYC-v4,host-phys-bits=on"},
		"a small device":    {machine{accelerator: KVM, cpuModel: "EPYC-v4", pci: disk}, "EPYC-v4"},
		"the admin's width": {machine{accelerator: KVM, cpuModel: "EPYC-v4,phys-bits=48", pci: board}, "EPYC-v4,phys-bits=48"},
	} {
		if got := test.m.cpu(); got != test.want {
			t.Errorf("%s: %s, want %s", name, got, test.want)
		}
	}
}

func TestParseAddressBits(t *testing.T) {
	for text, want := range map[string]int{
		"flags\t: fpu\naddress sizes\t: 46 bits physical, 57 bits virtual\n": 46, "": 0, "address sizes\t: many bits physical": 0,
	} {
		if got := parseAddressBits(text); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
}

// TestMachinesWithBoards puts the devices of each board into each machine that has a golden command line: theirs come in whole, nothing
// else changes but the width of addresses, and QEMU knows it all. Together with the golden files this fixes every command line.
func TestMachinesWithBoards(t *testing.T) {
	q := qemutest.Start(t, require.VM(t))
	for board := range boards {
		devices := claimed(t, board)
		own := pciArguments(devices)
		for name, m := range goldenMachines() {
			before := arguments(m)
			m.pci = devices
			after := arguments(m)
			at := slices.Index(after, own[1]) - 1
			if at < 0 || !slices.Equal(after[at:at+len(own)], own) {
				t.Errorf("%s with %s lacks %q: %q", name, board, own, after)
				continue
			}
			rest := slices.Delete(slices.Clone(after), at, at+len(own))
			cpu := slices.Index(rest, "-cpu") + 1
			rest[cpu] = strings.TrimSuffix(rest[cpu], ",host-phys-bits=on")
			if !slices.Equal(rest, before) {
				t.Errorf("%s with %s has the arguments %q, not %q", name, board, rest, before)
			}
			if m.confidential != nil && m.confidential.TDX != nil && !q.Has(typeTDX) {
				after = checkTDXProperties(t, after)
			}
			faults, _ := q.Faults(after)
			for _, err := range faults {
				t.Errorf("%s with %s: %v", name, board, err)
			}
		}
	}
}

func TestDeviceNeeds(t *testing.T) {
	for name, test := range map[string]struct {
		config vm.Config
		want   []string
	}{
		"none":         {vm.Config{}, nil},
		"by its group": {vm.Config{PCIDevices: []vm.PCIDevice{{}}}, []string{typeVFIO}},
		"by its node":  {vm.Config{PCIDevices: []vm.PCIDevice{{OwnNode: true}}}, []string{typeVFIO, typeIOMMU}},
		"confidential": {
			vm.Config{PCIDevices: []vm.PCIDevice{{OwnNode: true}}, Confidential: &vm.Confidential{SNP: &vm.SNP{}}},
			[]string{typeVFIO, typeIOMMU, typeShares, typeSNP},
		},
	} {
		var got []string
		for _, need := range needs(test.config) {
			got = append(got, need.Type)
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
}

// BenchmarkBoardArguments makes the command line of a VM with the largest board.
func BenchmarkBoardArguments(b *testing.B) {
	m := goldenMachines()["kvm-vsock-devices"]
	m.pci = claimed(b, "hgx-b200")
	for b.Loop() {
		_ = arguments(m)
	}
}
