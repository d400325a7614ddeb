package config

import (
	"bytes"
	"encoding/base64"
	"errors"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestPresets(t *testing.T) {
	for name, want := range map[string]struct {
		tee    TEE
		kernel string
		memory uint32
		numa   NUMA
	}{
		"plain":   {TEENone, "vmlinux", 2048, NUMAOff},
		"gpu":     {TEENone, "vmlinux", 8192, NUMAPrefer},
		"snp":     {TEESNP, "vmlinuz", 2048, NUMAOff},
		"tdx":     {TEETDX, "vmlinuz", 2048, NUMAOff},
		"gpu-snp": {TEESNP, "vmlinuz", 8192, NUMAPrefer},
		"gpu-tdx": {TEETDX, "vmlinuz", 8192, NUMAPrefer},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "shim.toml")
			write(t, path, "preset = \""+name+"\"\n")
			got, err := Load(path)
			if err != nil {
				t.Fatal(err)
			}
			h := got.Hypervisor
			if got.TEE != want.tee || filepath.Base(h.Kernel) != want.kernel || h.DefaultMemoryMiB != want.memory || h.NUMA != want.numa {
				t.Errorf("got %s, %+v", got.TEE, h)
			}
			if name == "plain" && !reflect.DeepEqual(got, Default()) {
				t.Error("plain is not the default")
			}
		})
	}
	if got := Presets(); len(got) != 6 {
		t.Errorf("presets %v: one has no test", got)
	}
}

// TestPresetIsBelowTheFile: the file says more than its preset, and the last file that names one decides.
func TestPresetIsBelowTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "shim.toml")
	write(t, path, "preset = \"tdx\"\n[hypervisor]\ncpu_model = \"EPYC-Genoa\"\n")
	write(t, path+".d/10.toml", "preset = \"snp\"\n[guest]\nboot_timeout = \"4m\"\n")
	got, err := Load(path)
	if err != nil || got.TEE != TEESNP || got.Hypervisor.CPUModel != "EPYC-Genoa" || got.Guest.BootTimeout.Minutes() != 4 {
		t.Errorf("got %+v, %v", got, err)
	}
	write(t, path, "preset = \"sgx\"\n")
	write(t, path+".d/10.toml", "")
	if _, err := Load(path); !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), "gpu-snp") {
		t.Errorf("unknown preset: %v", err)
	}
}

func TestConfidentialFaults(t *testing.T) {
	for name, tc := range map[string]struct{ text, want string }{
		"legacy":            {"tee = \"sev\"", "use \"snp\""},
		"legacy with state": {"tee = \"sev-es\"", "cannot attest themselves"},
		"unknown":           {"tee = \"sgx\"", "none of none, snp, tdx"},
		"no firmware":       {"tee = \"snp\"", "hypervisor.firmware"},
		"emulated":          {"preset = \"snp\"\n[hypervisor]\naccelerator = \"tcg\"", "hypervisor.accelerator"},
		"policy":            {"preset = \"snp\"\n[snp]\npolicy = 0x10000", "bit 17"},
		"debugging":         {"preset = \"snp\"\n[snp]\npolicy = 0xb0000", "bit 19"},
		"migration":         {"preset = \"snp\"\n[snp]\npolicy = 0x70000", "bit 18"},
		"half an id block":  {"preset = \"snp\"\n[snp]\nid_block = \"/x\"", "belong together"},
		"author of nothing": {"preset = \"snp\"\n[snp]\nauthor_key = true", "snp.author_key"},
		"swallowed":         {"[hypervisor]\nfirmware = \"/x.fd\"\ntransport = \"serial\"", "hypervisor.transport"},
		"named model":       {"preset = \"tdx\"\n[hypervisor]\ncpu_model = \"SapphireRapids\"", "hypervisor.cpu_model"},
		"short owner":       {"preset = \"tdx\"\n[tdx]\nmrowner = \"00\"", "tdx.mrowner"},
		"odd owner":         {"preset = \"tdx\"\n[tdx]\nmrownerconfig = \"x\"", "tdx.mrownerconfig"},
		"quote by name":     {"preset = \"tdx\"\n[tdx]\nquote_service = \"localhost:4050\"", "tdx.quote_service"},
		"quote vsock":       {"preset = \"tdx\"\n[tdx]\nquote_service = \"vsock:host:4050\"", "tdx.quote_service"},
		"backing":           {"[hypervisor]\nmemory_backing = \"file\"", "hypervisor.memory_backing"},
		"pages":             {"[hypervisor]\nhuge_pages = \"4M\"", "hypervisor.huge_pages"},
		"part of a page":    {"[hypervisor]\nhuge_pages = \"1G\"\ndefault_memory_mib = 1536", "multiple"},
		"nodes unused":      {"[hypervisor]\nnuma_nodes = [0]", "hypervisor.numa is off"},
		"node":              {"[hypervisor]\nnuma = \"strict\"\nnuma_nodes = [-1]", "not between 0"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "shim.toml")
			write(t, path, tc.text+"\n")
			if _, err := Load(path); !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestIDBlockFiles(t *testing.T) {
	dir := t.TempDir()
	block, auth := bytes.Repeat([]byte{1}, idBlockSize), bytes.Repeat([]byte{2}, idAuthSize)
	write(t, dir+"/block", string(block))
	write(t, dir+"/auth", base64.StdEncoding.EncodeToString(auth)+"\n")
	write(t, dir+"/shim.toml", "preset = \"snp\"\n[snp]\nid_block = \""+dir+"/block\"\nid_auth = \""+dir+"/auth\"\n")
	got, err := Load(dir + "/shim.toml")
	if err != nil {
		t.Fatal(err)
	}
	if b, a := got.SNP.ID(); !bytes.Equal(b, block) || !bytes.Equal(a, auth) {
		t.Errorf("got %d and %d bytes", len(b), len(a))
	}
	write(t, dir+"/block", "short")
	if _, err := Load(dir + "/shim.toml"); !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), "96 bytes") {
		t.Errorf("short block: %v", err)
	}
}

func TestQuoteService(t *testing.T) {
	if path := QuoteService("unix:/run/qgs.sock").Unix(); path != "/run/qgs.sock" {
		t.Errorf("path %q", path)
	}
	if cid, port, ok := QuoteService("vsock:2:4050").Vsock(); cid != 2 || port != 4050 || !ok {
		t.Errorf("got %d:%d, %t", cid, port, ok)
	}
}
