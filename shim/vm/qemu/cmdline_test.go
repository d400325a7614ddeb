package qemu

import (
	"bytes"
	"encoding/json"
	"flag"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/integration/require"
	"github.com/coffer-project/coffer/shim/vm"
	"github.com/coffer-project/coffer/shim/vm/qemu/qemutest"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// goldenMachines are the command lines that have a golden file.
func goldenMachines() map[string]machine {
	mac := net.HardwareAddr{0x0a, 0x58, 0x0a, 0x58, 0, 2}
	return map[string]machine{
		"tcg-serial": {
			accelerator: TCG, seccomp: true, id: "pod-1", vcpus: 1, memoryMiB: 512, kernel: "/g/vmlinux", initrd: "/g/initrd.cpio",
			qmpFD: 3, consoleFD: 4, portFD: 5,
		},
		"kvm-vsock-devices": {
			accelerator: KVM, seccomp: true, id: "pod-2", vcpus: 4, memoryMiB: 8192, kernel: "/g/vmlinux", initrd: "/g/initrd.cpio",
			kernelParams: []string{"agent.log=info", "coffer.initdata_digest=sha256:00"},
			qmpFD:        3, consoleFD: 4, vhostFD: 5, cid: 4711,
			disks: []disk{
				{Disk: vm.Disk{Serial: "initdata", Path: "/run/a,b/initdata.img", ReadOnly: true}}, {Disk: vm.Disk{Serial: "plain", Path: "/run/s.img"}},
				{Disk: vm.Disk{Serial: "scratch", Volatile: true}, fd: 8},
			},
			nics: []nic{{fd: 6, mac: mac}, {fd: 7, mac: mac}},
		},
		"snp": {
			accelerator: KVM, cpuModel: "EPYC-v4", seccomp: true, id: "pod-4", vcpus: 2, memoryMiB: 4096, kernel: "/g/vmlinuz", initrd: "/g/initrd.cpio",
			firmware: "/g/AMDSEV.fd", qmpFD: 3, consoleFD: 4, vhostFD: 5, cid: 4711,
			confidential: &vm.Confidential{SNP: &vm.SNP{Policy: 0x30000, HostData: bytes.Repeat([]byte{1}, 32), CBitPos: 51, ReducedPhysBits: 1}},
		},
		"snp-id-block-huge-numa": {
			accelerator: KVM, cpuModel: "EPYC-v4", id: "pod-5", vcpus: 8, memoryMiB: 65536, kernel: "/g/vmlinuz", initrd: "/g/initrd.cpio",
			firmware: "/g/AMDSEV.fd", qmpFD: 3, consoleFD: 4, vhostFD: 5, cid: 4712,
			memory: vm.Memory{HugePageMiB: 1024}, placement: vm.Placement{Nodes: []int{1, 3}, Strict: true},
			confidential: &vm.Confidential{SNP: &vm.SNP{
				Policy: 0x20000, CBitPos: 47, ReducedPhysBits: 1, IDBlock: make([]byte, 96), IDAuth: make([]byte, 4096), AuthorKey: true,
			}},
		},
		"tdx": {
			accelerator: KVM, seccomp: true, id: "pod-6", vcpus: 2, memoryMiB: 4096, kernel: "/g/vmlinuz", initrd: "/g/initrd.cpio",
			firmware: "/g/OVMF.fd", qmpFD: 3, consoleFD: 4, vhostFD: 5, cid: 4711,
			confidential: &vm.Confidential{TDX: &vm.TDX{MRConfigID: bytes.Repeat([]byte{1}, 48), QuoteSocket: "/var/run/tdx-qgs/qgs.socket"}},
		},
		"tdx-vsock-owner": {
			accelerator: KVM, id: "pod-7", vcpus: 1, memoryMiB: 2048, kernel: "/g/vmlinuz", firmware: "/g/OVMF.fd",
			qmpFD: 3, consoleFD: 4, vhostFD: 5, cid: 4713, memory: vm.Memory{Shared: true},
			confidential: &vm.Confidential{TDX: &vm.TDX{
				MROwner: bytes.Repeat([]byte{2}, 48), MROwnerConfig: bytes.Repeat([]byte{3}, 48), QuoteCID: 2, QuotePort: 4050,
			}},
		},
		"tcg-firmware-numa": {
			accelerator: TCG, id: "pod-8", vcpus: 1, memoryMiB: 1024, kernel: "/g/vmlinuz", firmware: "/g/OVMF.fd",
			qmpFD: 3, consoleFD: 4, vhostFD: 5, cid: 4714, placement: vm.Placement{Nodes: []int{0}},
		},
		"kvm-cpu-model": {
			accelerator: KVM, cpuModel: "EPYC-v4,-pmu", id: "pod-3", vcpus: 1, memoryMiB: 512, kernel: "/g/vmlinux",
			qmpFD: 3, consoleFD: 4, portFD: 5,
		},
	}
}

// format puts each option on a line of its own.
func format(args []string) string {
	var text strings.Builder
	for i, arg := range args {
		switch {
		case i == 0:
		case strings.HasPrefix(arg, "-"):
			text.WriteByte('\n')
		default:
			text.WriteByte(' ')
		}
		text.WriteString(arg)
	}
	return text.String() + "\n"
}

func TestArgumentsGolden(t *testing.T) {
	for name, m := range goldenMachines() {
		t.Run(name, func(t *testing.T) { checkGolden(t, name, arguments(m)) })
	}
}

// checkGolden compares a command line with the golden file of that name.
func checkGolden(t *testing.T, name string, args []string) {
	t.Helper()
	path := filepath.Join("testdata", name+".args")
	got := format(args)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("got:\n%s\nwant:\n%s\n(go test -update rewrites it)", got, want)
	}
}

// TestArgumentsAgainstQEMU holds each golden command line against the installed QEMU, and shows that a misspelt property would
// be found.
func TestArgumentsAgainstQEMU(t *testing.T) {
	q := qemutest.Start(t, require.VM(t))
	for name, m := range goldenMachines() {
		args := arguments(m)
		if m.confidential != nil && m.confidential.TDX != nil && !q.Has(typeTDX) {
			args = checkTDXProperties(t, args)
		}
		faults, checked := q.Faults(args)
		for _, err := range faults {
			t.Errorf("%s: %v", name, err)
		}
		if checked < 7 {
			t.Errorf("%s: only %d options were checked", name, checked)
		}
	}
	for _, wrong := range [][]string{
		{"-device", "virtio-rng-pci,rgn=rng"}, {"-device", "virtio-rgn-pci"}, {"-machine", "q35,vmprot=off"}, {"-accel", "kvm,irqchip=split"},
		{"-cpu", "EPYC-v40"}, {"-cpu", "max,-emrs"}, {"-object", "memory-backend-memfd,id=x,hugetlbsz=2M"},
		{"-object", `{"qom-type":"sev-snp-guest","id":"x","hostdata":"AA=="}`}, {"-object", `{"qom-type":"sev-snp-guest","id":"x","host-data":"AA=="}`},
	} {
		if faults, _ := q.Faults(wrong); len(faults) != 1 {
			t.Errorf("%v: got %v", wrong, faults)
		}
	}
}

// tdxProperties are those of tdx-guest in QEMU 10.1 and later (QEMU, qapi/qom.json: TdxGuestProperties), which QEMU 11.1.3
// lists, too.
var tdxProperties = []string{"attributes", "sept-ve-disable", "mrconfigid", "mrowner", "mrownerconfig", "quote-generation-socket"}

// checkTDXProperties holds the object of a trust domain against them, where the installed QEMU is older, and returns the other arguments.
func checkTDXProperties(t *testing.T, args []string) []string {
	t.Helper()
	at := slices.IndexFunc(args, func(arg string) bool { return strings.HasPrefix(arg, `{"qom-type":"tdx-guest"`) })
	var object map[string]any
	if at < 0 || json.Unmarshal([]byte(args[at]), &object) != nil {
		t.Fatalf("no object of TDX in %v", args)
	}
	for property := range object {
		if property != "qom-type" && property != "id" && !slices.Contains(tdxProperties, property) {
			t.Errorf("tdx-guest has no %q", property)
		}
	}
	return slices.Delete(slices.Clone(args), at-1, at+1)
}

// TestSandboxOptions lets QEMU parse the rest: it must get as far as the missing kernel.
func TestSandboxOptions(t *testing.T) {
	require.VM(t)
	m := goldenMachines()["tcg-serial"]
	m.kernel = "/nonexistent/vmlinux"
	var files []*os.File
	for range 3 {
		conn, file, err := pair("wire")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		defer file.Close()
		files = append(files, file)
	}
	p, err := spawn(qemuBinary, arguments(m), spawnOptions{files: files})
	if err != nil {
		t.Fatal(err)
	}
	<-p.done
	if words := p.lastWords(); !strings.Contains(words, "could not load kernel") && !strings.Contains(words, "could not open kernel") {
		t.Errorf("QEMU %s", words)
	}
}
