package qemu

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/integration/require"
	"github.com/coffer-project/coffer/shim/vm"
)

// TestAbilities asks the installed QEMU, and not again before it changes.
func TestAbilities(t *testing.T) {
	binary := require.VM(t)
	driver := newDriver(t, func(o *Options) { o.Binary, o.CacheDir = binary, t.TempDir() })
	found, err := driver.abilities(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(found.Types, typeSNP) || !slices.Contains(found.Types, "virtio-blk-pci") || strings.Count(found.Version, ".") != 2 {
		t.Errorf("QEMU %s has %d types", found.Version, len(found.Types))
	}
	kept := filepath.Join(driver.options.CacheDir, abilitiesFile)
	if err := os.Chtimes(kept, time.Unix(1, 0), time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if err := driver.Require(t.Context(), NeedSNP); err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(kept); err != nil || info.ModTime().Unix() != 1 {
		t.Errorf("it was asked again: %v", err)
	}
	err = driver.Require(t.Context(), NeedSNP, Need{Type: "sgx-guest", Since: "99.1", For: "SGX"})
	want := fmt.Sprintf("SGX: sgx-guest needs QEMU 99.1 or newer; %s is %s", binary, found.Version)
	if !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "SNP") {
		t.Errorf("got %v, want %s", err, want)
	}
	if err := os.WriteFile(kept, []byte(`{"qemu":"another","types":["sgx-guest"]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := driver.Require(t.Context(), Need{Type: "sgx-guest"}); err == nil {
		t.Error("what another binary can do is believed of this one")
	}
}

func TestAbilitiesOfNoQEMU(t *testing.T) {
	driver := newDriver(t, func(o *Options) { o.Binary, o.CacheDir = script(t, "echo no such machine >&2; exit 1"), t.TempDir() })
	if err := driver.Require(t.Context(), NeedTDX); err == nil || !strings.Contains(err.Error(), "no such machine") {
		t.Errorf("got %v", err)
	}
}

// TestConfidentialRefused: what is missing is found before anything runs.
func TestConfidentialRefused(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"vmlinux": "\x7fELF", "vmlinuz": strings.Repeat("\x00", 0x202) + "HdrS", "OVMF.fd": "x"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tdx := &vm.Confidential{TDX: &vm.TDX{}}
	for name, tc := range map[string]struct {
		change func(*Options, *vm.Config)
		class  error
		want   string
	}{
		"emulated":        {func(o *Options, _ *vm.Config) { o.Accelerator = TCG }, errdefs.ErrFailedPrecondition, "cannot be emulated"},
		"vmlinux":         {func(_ *Options, c *vm.Config) { c.Kernel = dir + "/vmlinux" }, errdefs.ErrFailedPrecondition, "firmware starts a bzImage"},
		"firmware gone":   {func(_ *Options, c *vm.Config) { c.Firmware = dir + "/none" }, errdefs.ErrFailedPrecondition, "hypervisor.firmware"},
		"no firmware":     {func(_ *Options, c *vm.Config) { c.Firmware = "" }, errdefs.ErrInvalidArgument, "without firmware"},
		"two TEEs":        {func(_ *Options, c *vm.Config) { c.Confidential = &vm.Confidential{SNP: &vm.SNP{}, TDX: &vm.TDX{}} }, errdefs.ErrInvalidArgument, "of two"},
		"short host data": {func(_ *Options, c *vm.Config) { c.Confidential = &vm.Confidential{SNP: &vm.SNP{HostData: []byte{1}}} }, errdefs.ErrInvalidArgument, "host data of 1 bytes"},
		"no C-bit":        {func(_ *Options, c *vm.Config) { c.Confidential = &vm.Confidential{SNP: &vm.SNP{}} }, errdefs.ErrInvalidArgument, "C-bit"},
		"long mrconfigid": {func(_ *Options, c *vm.Config) {
			c.Confidential = &vm.Confidential{TDX: &vm.TDX{MRConfigID: make([]byte, 64)}}
		}, errdefs.ErrInvalidArgument, "mrconfigid"},
		"no vsock":          {func(o *Options, c *vm.Config) { o.Transport, o.Accelerator, c.Confidential = Serial, TCG, nil }, errdefs.ErrFailedPrecondition, "vhost_vsock"},
		"part of huge page": {func(_ *Options, c *vm.Config) { c.Memory.HugePageMiB = 1024 }, errdefs.ErrInvalidArgument, "multiple"},
	} {
		t.Run(name, func(t *testing.T) {
			config := vm.Config{
				ID: "pod", StateDir: t.TempDir(), VCPUs: 1, MemoryMiB: 512, Kernel: dir + "/vmlinuz", Firmware: dir + "/OVMF.fd", Confidential: tdx,
			}
			driver := newDriver(t, func(o *Options) {
				o.Accelerator, o.Binary = KVM, script(t, "exit 1")
				tc.change(o, &config)
			})
			if _, err := driver.New(t.Context(), config); !errors.Is(err, tc.class) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestProcessors(t *testing.T) {
	if set, err := processors(vm.Placement{}); set != nil || err != nil {
		t.Errorf("no binding: %v, %v", set, err)
	}
	if _, err := processors(vm.Placement{Nodes: []int{1000}}); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("a node that is not there: %v", err)
	}
	var allowed, got unix.CPUSet
	for cpu := range 16 {
		allowed.Set(cpu)
	}
	if err := addProcessors(&got, &allowed, "0-2,8,14-17\n"); err != nil || got.Count() != 6 || !got.IsSet(15) || got.IsSet(16) {
		t.Errorf("%d processors, %v", got.Count(), err)
	}
	for _, list := range []string{"a", "1-b"} {
		if err := addProcessors(&got, &allowed, list); err == nil {
			t.Errorf("%q is read", list)
		}
	}
}

// TestPlacement boots on one NUMA node: QEMU must take the memory's policy, and all its threads run on the node's processors.
func TestPlacement(t *testing.T) {
	g := needGuest(t)
	config := g.config(t)
	config.Placement = vm.Placement{Nodes: []int{0}, Strict: true}
	want, err := processors(config.Placement)
	if err != nil {
		t.Fatal(err)
	}
	instance := boot(t, newDriver(t, nil), config)
	if got := mustAsk(t, instance, "print up"); got != "printed" {
		t.Errorf("answer %q", got)
	}
	var got unix.CPUSet
	if err := unix.SchedGetaffinity(instance.PID(), &got); err != nil || got != *want {
		t.Errorf("QEMU runs on %d processors, want %d, %v", got.Count(), want.Count(), err)
	}
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/numa_maps", instance.PID()))
	if err == nil && !strings.Contains(string(maps), "bind:0") {
		t.Error("no memory of QEMU's is bound to the node")
	}
}

// BenchmarkArguments measures how long it takes to make the command line of a confidential guest.
func BenchmarkArguments(b *testing.B) {
	machines := goldenMachines()
	for _, name := range []string{"snp", "tdx"} {
		b.Run(name, func(b *testing.B) {
			m := machines[name]
			for b.Loop() {
				arguments(m)
			}
		})
	}
}
