package config

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestDefaultIsTheSample(t *testing.T) {
	var text bytes.Buffer
	if err := WriteDefault(&text); err != nil {
		t.Fatal(err)
	}
	committed, err := os.ReadFile("../../contrib/config/shim.toml")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(text.Bytes(), committed) {
		t.Error("contrib/config/shim.toml differs from shim/config/shim.toml: copy the latter over the former")
	}
	// Decoding over the zero value shows that the sample names every key, not only that it contradicts none.
	got := &Config{}
	if err := decode(text.Bytes(), got); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, Default()) {
		t.Errorf("the sample stands for\n%+v, the defaults are\n%+v", got, Default())
	}
	if err := Default().Validate(); err != nil {
		t.Errorf("defaults are invalid: %v", err)
	}
}

func TestLoadMergesDropIns(t *testing.T) {
	path := filepath.Join(t.TempDir(), "shim.toml")
	document := filepath.Join(t.TempDir(), "initdata.toml")
	write(t, document, "version = \"0.1.0\"\n")
	write(t, path, "[hypervisor]\ndefault_vcpus = 2\naccelerator = \"tcg\"\n[initdata]\nfile = \""+document+"\"\n")
	write(t, path+".d/20-b.toml", "[hypervisor]\ndefault_vcpus = 4\n")
	write(t, path+".d/10-a.toml", "[hypervisor]\ndefault_vcpus = 3\nkernel_params = [\"quiet\"]\n[guest]\nboot_timeout = \"2m\"\n")
	write(t, path+".d/30-c.toml.bak", "nonsense")
	config, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	h := config.Hypervisor
	if h.DefaultVCPUs != 4 || h.Accelerator != AcceleratorTCG || len(h.KernelParams) != 1 || h.Machine != "q35" {
		t.Errorf("wrong merge: %+v", h)
	}
	if config.Guest.BootTimeout.Duration != 2*time.Minute {
		t.Errorf("boot_timeout = %s", config.Guest.BootTimeout)
	}
	if string(config.Initdata.Document()) != "version = \"0.1.0\"\n" {
		t.Errorf("initdata document = %q", config.Initdata.Document())
	}
}

func TestLoadFaults(t *testing.T) {
	cases := map[string]struct {
		text string
		want []string
	}{
		"unknown key":     {"[hypervisor]\nseccmp = true\n", []string{"line 2", "hypervisor.seccmp"}},
		"unknown keys":    {"a = 1\n[guest]\nb = 2\n", []string{"unknown key a", "guest.b"}},
		"syntax":          {"[hypervisor\n", []string{"line 1"}},
		"bare duration":   {"[guest]\nboot_timeout = 20\n", []string{"\"20\" is no duration"}},
		"duration":        {"[guest]\nboot_timeout = \"20\"\n", []string{"duration"}},
		"enum":            {"[hypervisor]\naccelerator = \"xen\"\n", []string{"\"xen\" is none of auto, kvm, tcg"}},
		"empty enum":      {"log_level = \"\"\n", []string{"is none of"}},
		"negative":        {"[hypervisor]\ndefault_vcpus = -1\n", []string{"line 2"}},
		"missing initdta": {"[initdata]\nfile = \"/nonexistent/initdata.toml\"\n", []string{"initdata.file", "no such file"}},
		"two faults": {"state_dir = \"run\"\n[hypervisor]\nfirmware = \"x.fd\"\nkernel = \"/a,b\"\n",
			[]string{"state_dir", "hypervisor.firmware", "comma"}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "shim.toml")
			write(t, path, tc.text)
			_, err := Load(path)
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range append(tc.want, "") {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %q", err, want)
				}
			}
		})
	}
	if _, err := Load(filepath.Join(t.TempDir(), "none.toml")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a named file that is missing: %v", err)
	}
}

func TestValidateNamesEveryFault(t *testing.T) {
	cases := map[string]struct {
		change func(*Config)
		want   string
	}{
		"relative kernel":     {func(c *Config) { c.Hypervisor.Kernel = "vmlinux" }, "hypervisor.kernel"},
		"no qemu":             {func(c *Config) { c.Hypervisor.Path = "" }, "hypervisor.path"},
		"machine":             {func(c *Config) { c.Hypervisor.Machine = "microvm" }, "hypervisor.machine"},
		"cpu model":           {func(c *Config) { c.Hypervisor.CPUModel = "max pmu=off" }, "hypervisor.cpu_model"},
		"vcpus over max":      {func(c *Config) { c.Hypervisor.DefaultVCPUs = 64 }, "default_vcpus"},
		"max vcpus":           {func(c *Config) { c.Hypervisor.MaxVCPUs = 5000 }, "max_vcpus"},
		"copy size":           {func(c *Config) { c.Volumes.MaxCopyMiB = 0 }, "max_copy_mib"},
		"copied files":        {func(c *Config) { c.Volumes.MaxCopyFiles = 1 << 20 }, "max_copy_files"},
		"scratch size":        {func(c *Config) { c.Scratch.DefaultMiB = 8 }, "scratch.default_mib"},
		"scratch over max":    {func(c *Config) { c.Scratch.DefaultMiB = c.Scratch.MaxMiB + 1 }, "scratch.default_mib"},
		"scratch maximum":     {func(c *Config) { c.Scratch.MaxMiB = 1 << 30 }, "scratch.max_mib"},
		"scratch folder":      {func(c *Config) { c.Scratch.Dir = "scratch" }, "scratch.dir"},
		"scratch in plain":    {func(c *Config) { c.Scratch.Protection = "none" }, "scratch.protection"},
		"emptydir":            {func(c *Config) { c.Volumes.EmptyDirMiB = 1 << 30 }, "emptydir_mib"},
		"memory in bytes":     {func(c *Config) { c.Hypervisor.MaxMemoryMiB = 1 << 31 }, "max_memory_mib"},
		"memory too small":    {func(c *Config) { c.Hypervisor.DefaultMemoryMiB = 64 }, "default_memory_mib"},
		"param blank":         {func(c *Config) { c.Hypervisor.KernelParams = []string{"a b"} }, "kernel_params"},
		"params too long":     {func(c *Config) { c.Hypervisor.KernelParams = []string{strings.Repeat("a", 1100)} }, "kernel_params"},
		"console lines":       {func(c *Config) { c.Guest.ConsoleLines = 0 }, "console_lines"},
		"probe timeout":       {func(c *Config) { c.Hypervisor.ProbeTimeout.Duration = 0 }, "probe_timeout"},
		"boot timeout":        {func(c *Config) { c.Guest.BootTimeout.Duration = 1 }, "boot_timeout"},
		"annotation name":     {func(c *Config) { c.Hypervisor.EnableAnnotations = []string{"kernel"} }, "enable_annotations"},
		"extension unchecked": {func(c *Config) { c.Hypervisor.Extensions = []Extension{{Name: "gpu", Path: "/gpu.img"}} }, "verity_params of gpu"},
		"extension twice": {func(c *Config) {
			e := Extension{Name: "gpu", Path: "/gpu.img", VerityParams: "root_hash=00"}
			c.Hypervisor.Extensions = []Extension{e, e}
		}, "gpu is there twice"},
		"extension name": {func(c *Config) {
			c.Hypervisor.Extensions = []Extension{{Name: "nvidia-driver", Path: "/gpu.img", VerityParams: "root_hash=00"}}
		}, "guest_extension_images"},
		"extension path": {func(c *Config) {
			c.Hypervisor.Extensions = []Extension{{Name: "gpu", Path: "gpu.img", VerityParams: "root_hash=00"}}
		}, "guest_extension_images"},
		"extension params": {func(c *Config) {
			c.Hypervisor.Extensions = []Extension{{Name: "gpu", Path: "/gpu.img", VerityParams: "root_hash=00 agent.log=debug"}}
		}, "guest_extension_images"},
		"many extensions": {func(c *Config) { c.Hypervisor.Extensions = make([]Extension, 5) }, "more than 4"},
		"empty transport": {func(c *Config) { c.Hypervisor.Transport = "" }, "hypervisor.transport"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			config := Default()
			tc.change(config)
			err := config.Validate()
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want a fault of %s", err, tc.want)
			}
		})
	}
	all := Default()
	for _, tc := range cases {
		if tc.want != "default_vcpus" && tc.want != "default_memory_mib" {
			tc.change(all)
		}
	}
	if lines := strings.Count(all.Validate().Error(), "\n"); lines < 8 {
		t.Errorf("only %d faults named at once", lines+1)
	}
}

func TestExtensionParams(t *testing.T) {
	config := Default()
	config.Hypervisor.Extensions = []Extension{{Name: "gpu", Path: "/gpu.img", VerityParams: "root_hash=00,salt=11"}}
	if err := config.Validate(); err != nil {
		t.Fatal(err)
	}
	got := strings.Join(config.GuestParams(true), " ")
	if want := "agent.log=info kata.extension.gpu.verity_params=root_hash=00,salt=11 coffer.scratch=encrypted"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := config.Hypervisor.Extensions[0].Serial(); got != "extension-gpu" {
		t.Errorf("serial %q", got)
	}
}

func TestPodAnnotations(t *testing.T) {
	cases := map[string]struct {
		annotations map[string]string
		closed      bool
		want        Pod
		wantErr     string
	}{
		"none":           {nil, false, Pod{VCPUs: 1, MemoryMiB: 2048}, ""},
		"foreign":        {map[string]string{"io.kubernetes.cri.sandbox-id": "x"}, false, Pod{VCPUs: 1, MemoryMiB: 2048}, ""},
		"sizes":          {map[string]string{AnnotationVCPUs: "4", AnnotationMemory: "4096"}, false, Pod{VCPUs: 4, MemoryMiB: 4096}, ""},
		"initdata":       {map[string]string{AnnotationInitdata: "H4s"}, false, Pod{VCPUs: 1, MemoryMiB: 2048, InitdataAnnotation: "H4s"}, ""},
		"too many vcpus": {map[string]string{AnnotationVCPUs: "33"}, false, Pod{}, "limit of 32"},
		"no number":      {map[string]string{AnnotationMemory: "4Gi"}, false, Pod{}, "whole number"},
		"loosens":        {map[string]string{AnnotationPrefix + "hypervisor.kernel_params": "agent.log=debug"}, false, Pod{}, "does not know"},
		"agent":          {map[string]string{AnnotationPrefix + "agent.policy": "x"}, false, Pod{}, "does not know"},
		"not allowed":    {map[string]string{AnnotationInitdata: "H4s"}, true, Pod{}, "allow_annotation"},
		"empty initdata": {map[string]string{AnnotationInitdata: ""}, false, Pod{}, "is empty"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			config := Default()
			config.Initdata.AllowAnnotation = !tc.closed
			got, err := config.Pod(tc.annotations, Demand{})
			if tc.wantErr == "" && err != nil || got != tc.want {
				t.Fatalf("got %+v, %v", got, err)
			}
			if tc.wantErr != "" && (!errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tc.wantErr)) {
				t.Errorf("got %v, want %q", err, tc.wantErr)
			}
		})
	}
}

// FuzzPod: whatever a pod's annotations say, its VM stays within the node's limits, and what is refused names the annotation.
func FuzzPod(f *testing.F) {
	for key, value := range map[string]string{
		AnnotationVCPUs: "2", AnnotationMemory: "1024", AnnotationScratch: "0", AnnotationInitdata: "H4sIAAAAAAAA", AnnotationPrefix + "x": "", "other": "x",
	} {
		f.Add(key, value, true)
	}
	f.Add(AnnotationVCPUs, "-1", true)
	f.Add(AnnotationMemory, "4294967297", true)
	f.Fuzz(func(t *testing.T, key, value string, allow bool) {
		config := Default()
		config.Hypervisor.EnableAnnotations = nil
		if allow {
			config.Hypervisor.EnableAnnotations = []string{"default_vcpus", "default_memory", "scratch_mib"}
		}
		config.Initdata.AllowAnnotation = allow
		plain, err := config.Pod(nil, Demand{})
		if err != nil {
			t.Fatal(err)
		}
		got, err := config.Pod(map[string]string{key: value}, Demand{})
		switch {
		case err != nil && (!errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), key)):
			t.Errorf("%q: %v", key, err)
		case err == nil && !allow && got != plain:
			t.Errorf("%q changed the pod to %+v", key, got)
		case err == nil && (got.VCPUs < 1 || got.VCPUs > max(config.Hypervisor.MaxVCPUs, plain.VCPUs) || got.MemoryMiB > max(config.Hypervisor.MaxMemoryMiB, plain.MemoryMiB)):
			t.Errorf("%q: %+v is beyond the limits", key, got)
		}
	})
}

func FuzzDecode(f *testing.F) {
	f.Add(sample)
	f.Add([]byte("[hypervisor]\nkernel_params = [\"a\"]\n"))
	f.Fuzz(func(_ *testing.T, raw []byte) {
		config := Default()
		if decode(raw, config) == nil {
			_ = config.Validate()
		}
	})
}
