package qemu

import (
	"flag"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/integration/require"
	"github.com/coffer-project/coffer/shim/vm"
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
		t.Run(name, func(t *testing.T) {
			path := filepath.Join("testdata", name+".args")
			got := format(arguments(m))
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
		})
	}
}

// TestArgumentsAgainstQEMU checks that the installed QEMU knows each device, object and machine property we use.
func TestArgumentsAgainstQEMU(t *testing.T) {
	require.VM(t)
	property := regexp.MustCompile(`(?m)^\s+([a-z0-9_-]+)=`)
	help := map[string][]string{} // what QEMU knows of "-device virtio-rng-pci", and so on
	for name, m := range goldenMachines() {
		args := arguments(m)
		for i, option := range args {
			if !slices.Contains([]string{"-device", "-object", "-machine"}, option) {
				continue
			}
			kind, rest, _ := strings.Cut(args[i+1], ",")
			key := option + " " + kind
			if help[key] == nil {
				text, err := exec.Command(qemuBinary, option, kind+",help").CombinedOutput()
				if err != nil {
					t.Errorf("%s: QEMU does not know %s: %v: %s", name, key, err, text)
					continue
				}
				for _, match := range property.FindAllStringSubmatch(string(text), -1) {
					help[key] = append(help[key], match[1])
				}
			}
			for pair := range strings.SplitSeq(rest, ",") {
				property, _, _ := strings.Cut(pair, "=")
				if property != "" && property != "id" && !slices.Contains(help[key], property) {
					t.Errorf("%s: QEMU knows no %q of %s, only %v", name, property, key, help[key])
				}
			}
		}
	}
	if len(help) < 8 {
		t.Errorf("only %d kinds were checked", len(help))
	}
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
	p, err := spawn(qemuBinary, arguments(m), "", files)
	if err != nil {
		t.Fatal(err)
	}
	<-p.done
	if words := p.lastWords(); !strings.Contains(words, "could not load kernel") && !strings.Contains(words, "could not open kernel") {
		t.Errorf("QEMU %s", words)
	}
}
