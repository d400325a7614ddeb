package qemu

import (
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/shim/vm"
)

var (
	windowLine = regexp.MustCompile(`pci 0000:00:10\.[01]:\s+bridge window \[mem 0x([0-9a-f]+)-0x([0-9a-f]+) 64bit pref\]`)
	memoryLine = regexp.MustCompile(`pci 0000:0[12]:00\.0: BAR 2 \[mem 0x([0-9a-f]+)-0x([0-9a-f]+) 64bit pref\]`)
)

// TestWindowsPlaced lets firmware and kernel place devices with large memory behind our ports. QEMU's shared memory device stands for a
// GPU: its second register is as large as we like.
func TestWindowsPlaced(t *testing.T) {
	t.Parallel()
	kernel := needGuest(t).kernel
	const size = 64 * gib
	bars := []vm.BAR{{Bytes: 256}, {Bytes: size, Prefetchable: true, Wide: true}}
	m := machine{
		accelerator: TCG, id: "windows", vcpus: 1, memoryMiB: 512, kernel: kernel,
		pci: []vm.PCIDevice{{Address: "0000:41:00.0", BARs: bars}, {Address: "0000:42:00.0", BARs: bars}},
	}
	if err := m.checkRoom(0); err != nil {
		t.Fatal(err)
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "q35", "-accel", "tcg", "-cpu", m.cpu(), "-m", "512M",
		"-serial", "stdio", "-kernel", kernel, "-append", strings.ReplaceAll(m.append(), "quiet", "loglevel=7"),
	}
	for i := range m.pci {
		args = append(args, "-object", fmt.Sprintf("memory-backend-ram,id=big%d,size=%d,reserve=off", i, uint64(size)))
	}
	for _, arg := range pciArguments(m.pci) {
		if strings.HasPrefix(arg, "vfio-pci") {
			_, rest, _ := strings.Cut(arg, ",bus=")
			port, _, _ := strings.Cut(rest, ",")
			arg = "ivshmem-plain,bus=" + port + ",memdev=big" + strings.TrimPrefix(port, "rp")
		}
		args = append(args, arg)
	}
	// Without a root file system the kernel panics, which ends QEMU.
	console, err := exec.CommandContext(t.Context(), qemuBinary, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, console)
	}
	windows, memory := ranges(t, windowLine, console), ranges(t, memoryLine, console)
	if len(windows) != 2 || len(memory) != 2 {
		t.Fatalf("windows %x, memory %x: %s", windows, memory, console)
	}
	for i, r := range memory {
		if r[0] < 4*gib || r[1]-r[0]+1 != size || r[0] < windows[i][0] || r[1] > windows[i][1] {
			t.Errorf("memory %x of device %d is not in the window %x", r, i, windows[i])
		}
	}
	if strings.Contains(string(console), "can't assign") {
		t.Errorf("%s", console)
	}
}

// ranges are the places that lines of the kernel's log name, once each, as first and last address.
func ranges(t *testing.T, line *regexp.Regexp, console []byte) (out [][2]uint64) {
	t.Helper()
	for _, match := range line.FindAllSubmatch(console, -1) {
		var r [2]uint64
		for i := range r {
			var err error
			if r[i], err = strconv.ParseUint(string(match[i+1]), 16, 64); err != nil {
				t.Fatal(err)
			}
		}
		if !slices.Contains(out, r) {
			out = append(out, r)
		}
	}
	return out
}
