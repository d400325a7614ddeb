package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coffer-project/coffer/integration/program"
	"github.com/coffer-project/coffer/owner/measure"
	"github.com/coffer-project/coffer/shim/config"
	"github.com/coffer-project/coffer/shim/plugin/driver"
	"github.com/coffer-project/coffer/shim/tee"
	"github.com/coffer-project/coffer/shim/vm/qemu"
)

// examination is one run.
type examination struct {
	guest    string
	firmware map[string]string // by preset; empty for the preset's own
	large    uint32            // MiB
	// GPUs to try, by VFIO's nodes, and the extension image with their driver.
	gpus              []string
	extension, verity string
	done              []row
}

// text is the shim's configuration of a preset, with more keys of [hypervisor].
func (x *examination) text(preset, more string) string {
	kernel := "vmlinuz"
	tee := strings.TrimPrefix(preset, "gpu-")
	if tee == "plain" || tee == "gpu" {
		kernel = "vmlinux"
	}
	text := fmt.Sprintf("preset = %q\n[hypervisor]\nkernel = %q\ninitrd = %q\n", preset, filepath.Join(x.guest, kernel), filepath.Join(x.guest, "initrd.cpio"))
	if x.firmware[tee] != "" {
		text += fmt.Sprintf("firmware = %q\n", x.firmware[tee])
	}
	return text + more
}

func (x *examination) add(id, claim, outcome, format string, args ...any) {
	r := row{ID: id, Claim: claim, Outcome: outcome, Detail: fmt.Sprintf(format, args...)}
	x.done = append(x.done, r)
	program.Say("  %s: %s (%s)", r.ID, r.Outcome, r.Detail)
}

// rows tries a preset's.
func (x *examination) rows(ctx context.Context, preset string) {
	claim := "a guest starts, and its agent answers"
	if err := x.ready(ctx, preset); err != nil {
		x.add(preset+"-launch", claim, lacking, "%v", err)
		return
	}
	b, err := boot(ctx, x.text(preset, ""))
	if err != nil {
		x.add(preset+"-launch", claim, failed, "%v", err)
		return
	}
	x.add(preset+"-launch", claim, proved, "after %s", b.ready.Round(time.Millisecond))
	if preset != "plain" {
		x.bound(preset, b)
		x.measured(preset, b)
	}
	x.largeGuest(ctx, preset, b.ready)
	x.nodes(ctx, preset)
	x.hugePages(ctx, preset)
	x.passed(ctx, preset)
}

// ready tells whether this machine can start guests of a preset.
func (x *examination) ready(ctx context.Context, preset string) error {
	dir, err := os.MkdirTemp("", "coffer-hw")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "shim.toml")
	if err := os.WriteFile(path, []byte(x.text(preset, "")), 0o600); err != nil {
		return err
	}
	c, err := config.Load(path)
	if err != nil {
		return err
	}
	c.StateDir = dir
	if err := tee.Check(tee.Machine{}, c); err != nil {
		return err
	}
	d, err := driver.New(c)
	if err != nil {
		return err
	}
	switch c.TEE {
	case config.TEESNP:
		return d.Require(ctx, qemu.NeedSNP)
	case config.TEETDX:
		return d.Require(ctx, qemu.NeedTDX)
	}
	return nil
}

// bound: the guest has compared its document with the field that its processor reports.
func (x *examination) bound(preset string, b *booted) {
	outcome := failed
	if b.said["attested"] == "true" && b.said["initdata"] == "true" && b.said["tee"] == preset {
		outcome = proved
	}
	x.add(preset+"-initdata", "the guest's report carries the digest of its initdata", outcome, "the guest says attested=%s initdata=%s tee=%s", b.said["attested"], b.said["initdata"], b.said["tee"])
}

// measured: what the processor reports is what an owner computes from the files and the command line.
func (x *examination) measured(preset string, b *booted) {
	claim := "the launch measurement is the one that cofferctl measure computes"
	want, err := expected(preset, b.description.Arguments)
	if err != nil {
		x.add(preset+"-measure", claim, failed, "%v", err)
		return
	}
	got := b.said["measurement"]
	if slices.Contains(want, got) {
		x.add(preset+"-measure", claim, proved, "%s", got)
		return
	}
	x.add(preset+"-measure", claim, failed, "the guest says %s, computed: %s", got, strings.Join(want, " or "))
}

// expected computes what the processor should report: for TDX it depends on the host's kernel.
func expected(preset string, arguments []string) ([]string, error) {
	option := func(name string) string {
		for i := range len(arguments) - 1 {
			if arguments[i] == name {
				return arguments[i+1]
			}
		}
		return ""
	}
	firmware, err := os.ReadFile(option("-bios"))
	if err != nil {
		return nil, err
	}
	if preset == "tdx" {
		var all []string
		for _, order := range []measure.PageOrder{measure.PageByPage, measure.SectionBySection} {
			mrtd, err := measure.MRTD(firmware, order)
			if err != nil {
				return nil, err
			}
			all = append(all, hex.EncodeToString(mrtd))
		}
		return all, nil
	}
	guest := measure.SNPGuest{Firmware: firmware, Cmdline: option("-append"), Features: measure.SNPActive}
	if guest.Kernel, err = os.ReadFile(option("-kernel")); err != nil {
		return nil, err
	}
	if guest.Initrd, err = os.ReadFile(option("-initrd")); err != nil {
		return nil, err
	}
	if guest.VCPUs, err = strconv.Atoi(option("-smp")); err != nil {
		return nil, err
	}
	if guest.CPU, err = measure.CPUSignature(option("-cpu")); err != nil {
		return nil, err
	}
	digest, err := guest.Digest()
	return []string{hex.EncodeToString(digest)}, err
}

// largeGuest: memory is accepted as it is needed, so that a large guest starts about as fast as a small one.
func (x *examination) largeGuest(ctx context.Context, preset string, small time.Duration) {
	id, claim := preset+"-large", "a large guest starts about as fast as a small one"
	if free := availableMiB(); x.large == 0 || free < uint64(x.large)+1024 {
		x.add(id, claim, lacking, "%d MiB are available, and the large guest takes %d", free, x.large)
		return
	}
	b, err := boot(ctx, x.text(preset, fmt.Sprintf("default_memory_mib = %d\nmax_memory_mib = %d\n", x.large, x.large)))
	switch {
	case err != nil:
		x.add(id, claim, failed, "%v", err)
	case b.ready > 2*small+5*time.Second:
		x.add(id, claim, failed, "%d MiB: %s, the default: %s", x.large, b.ready.Round(time.Millisecond), small.Round(time.Millisecond))
	default:
		x.add(id, claim, proved, "%d MiB: %s, the default: %s", x.large, b.ready.Round(time.Millisecond), small.Round(time.Millisecond))
	}
}

// nodes: a guest keeps to the last NUMA node.
func (x *examination) nodes(ctx context.Context, preset string) {
	id, claim := preset+"-numa", "a guest is bound to one of several NUMA nodes"
	nodes, err := filepath.Glob("/sys/devices/system/node/node[0-9]*")
	if err != nil || len(nodes) < 2 {
		x.add(id, claim, lacking, "%d NUMA node", len(nodes))
		return
	}
	if _, err := boot(ctx, x.text(preset, fmt.Sprintf("numa = \"strict\"\nnuma_nodes = [%d]\n", len(nodes)-1))); err != nil {
		x.add(id, claim, failed, "%v", err)
		return
	}
	x.add(id, claim, proved, "node %d of %d", len(nodes)-1, len(nodes))
}

// hugePages: a guest's memory is on pages that were set aside.
func (x *examination) hugePages(ctx context.Context, preset string) {
	id, claim := preset+"-hugepages", "a guest's memory is on huge pages that were set aside"
	raw, err := os.ReadFile("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
	free, _ := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil || free < 1024 {
		x.add(id, claim, lacking, "%d free pages of 2 MiB, 1024 are needed (echo 1024 >/proc/sys/vm/nr_hugepages)", free)
		return
	}
	if _, err := boot(ctx, x.text(preset, "huge_pages = \"2M\"\n")); err != nil {
		x.add(id, claim, failed, "%v", err)
		return
	}
	x.add(id, claim, proved, "1024 pages of 2 MiB")
}

func availableMiB() uint64 {
	raw, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(raw), "MemAvailable:")
	kib, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
	n, _ := strconv.ParseUint(kib, 10, 64)
	return n >> 10
}
