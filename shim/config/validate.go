package config

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// Limits of what a file may ask for. They exist to catch a wrong unit (bytes for MiB, a bare number for seconds).
const (
	minMemoryMiB    = 128
	maxMemoryMiB    = 16 << 20 // 16 TiB
	maxVCPUs        = 1024
	maxConsoleLines = 10000
	maxParamBytes   = 1024 // all kernel_params together; the kernel's whole line is 2048
	maxStateDir     = 78   // a unix socket's path has 107 bytes, and <16 digits>/status.sock follows
)

// Validate returns all faults, joined, each naming its key; errdefs.IsInvalidArgument holds for the result.
func (c *Config) Validate() error {
	var faults []error
	fault := func(key, format string, args ...any) {
		faults = append(faults, fmt.Errorf("%w: %s: "+format, append([]any{errdefs.ErrInvalidArgument, key}, args...)...))
	}
	c.validatePaths(fault)
	c.validateMachine(fault)
	c.validateTimes(fault)
	c.validateVolumes(fault)
	c.validateScratch(fault)
	c.validateMemory(fault)
	c.validateConfidential(fault)
	c.validateDevices(fault)
	c.validateExtensions(fault)
	return errors.Join(faults...)
}

type faultFunc func(key, format string, args ...any)

func (c *Config) validatePaths(fault faultFunc) {
	h := &c.Hypervisor
	for _, p := range []struct {
		key, path string
		optional  bool
	}{
		{"state_dir", c.StateDir, false},
		{"hypervisor.path", h.Path, false},
		{"hypervisor.kernel", h.Kernel, false},
		{"hypervisor.initrd", h.Initrd, true},
		{"hypervisor.firmware", h.Firmware, true},
		{"initdata.file", c.Initdata.File, true},
		{"scratch.dir", c.Scratch.Dir, false},
	} {
		switch {
		case p.path == "" && p.optional:
		case p.path == "":
			fault(p.key, "is empty")
		case !filepath.IsAbs(p.path) || filepath.Clean(p.path) != p.path:
			fault(p.key, "%q is no clean absolute path", p.path)
		// QEMU reads a comma as the end of an option's value.
		case strings.ContainsAny(p.path, ",\n\x00"):
			fault(p.key, "%q has a comma or a line break", p.path)
		}
	}
	if len(c.StateDir) > maxStateDir {
		fault("state_dir", "has %d bytes, and with more than %d the sockets below it have no place", len(c.StateDir), maxStateDir)
	}
}

func (c *Config) validateMachine(fault faultFunc) {
	h := &c.Hypervisor
	levels := []Level{LevelTrace, LevelDebug, LevelInfo, LevelWarn, LevelError}
	checkEnum(fault, "log_level", c.LogLevel, levels...)
	checkEnum(fault, "guest.log_level", c.Guest.LogLevel, levels...)
	checkEnum(fault, "hypervisor.accelerator", h.Accelerator, AcceleratorAuto, AcceleratorKVM, AcceleratorTCG)
	checkEnum(fault, "hypervisor.transport", h.Transport, TransportAuto, TransportVsock, TransportSerial)
	// Other machine types lack PCIe or hang at boot, so the driver knows this one only.
	if h.Machine != "q35" {
		fault("hypervisor.machine", "%q is not supported, only q35", h.Machine)
	}
	if strings.ContainsFunc(h.CPUModel, func(r rune) bool { return r <= ' ' || r > '~' }) {
		fault("hypervisor.cpu_model", "%q has blanks or non-ASCII characters", h.CPUModel)
	}
	if h.MaxVCPUs < 1 || h.MaxVCPUs > maxVCPUs {
		fault("hypervisor.max_vcpus", "%d is not between 1 and %d", h.MaxVCPUs, maxVCPUs)
	}
	if h.DefaultVCPUs < 1 || h.DefaultVCPUs > h.MaxVCPUs {
		fault("hypervisor.default_vcpus", "%d is not between 1 and max_vcpus (%d)", h.DefaultVCPUs, h.MaxVCPUs)
	}
	if h.MaxMemoryMiB < minMemoryMiB || h.MaxMemoryMiB > maxMemoryMiB {
		fault("hypervisor.max_memory_mib", "%d is not between %d and %d", h.MaxMemoryMiB, minMemoryMiB, maxMemoryMiB)
	}
	if h.DefaultMemoryMiB < minMemoryMiB || h.DefaultMemoryMiB > h.MaxMemoryMiB {
		fault("hypervisor.default_memory_mib", "%d is not between %d and max_memory_mib (%d)",
			h.DefaultMemoryMiB, minMemoryMiB, h.MaxMemoryMiB)
	}
	for _, name := range h.EnableAnnotations {
		if name != nameVCPUs && name != nameMemory && name != nameScratch {
			fault("hypervisor.enable_annotations", "%q is neither %s, %s nor %s", name, nameVCPUs, nameMemory, nameScratch)
		}
	}
	total := 0
	for _, p := range h.KernelParams {
		total += len(p) + 1
		// A blank would make two parameters of one, so that the file would not say what the kernel gets.
		if p == "" || strings.ContainsFunc(p, func(r rune) bool { return r <= ' ' || r > '~' }) {
			fault("hypervisor.kernel_params", "%q is empty or has blanks; write one parameter per entry", p)
		}
	}
	if total > maxParamBytes {
		fault("hypervisor.kernel_params", "%d bytes together, more than %d", total, maxParamBytes)
	}
	if c.Guest.ConsoleLines < 1 || c.Guest.ConsoleLines > maxConsoleLines {
		fault("guest.console_lines", "%d is not between 1 and %d", c.Guest.ConsoleLines, maxConsoleLines)
	}
}

func (c *Config) validateTimes(fault faultFunc) {
	for _, t := range []struct {
		key      string
		value    Duration
		min, max time.Duration
	}{
		{"hypervisor.probe_timeout", c.Hypervisor.ProbeTimeout, time.Second, 10 * time.Minute},
		{"hypervisor.shutdown_grace", c.Hypervisor.ShutdownGrace, 100 * time.Millisecond, time.Minute},
		{"guest.boot_timeout", c.Guest.BootTimeout, time.Second, time.Hour},
		{"guest.request_timeout", c.Guest.RequestTimeout, time.Second, time.Hour},
		{"image.create_container_timeout", c.Image.CreateContainerTimeout, time.Second, 24 * time.Hour},
	} {
		if t.value.Duration < t.min || t.value.Duration > t.max {
			fault(t.key, "%s is not between %s and %s", t.value, t.min, t.max)
		}
	}
}
