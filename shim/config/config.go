package config

import (
	"fmt"
	"time"
)

// DefaultPath is where the shim looks when containerd's runtime options name no file.
const DefaultPath = "/etc/coffer/shim.toml"

// Config is one runtime handler's configuration.
type Config struct {
	// Preset names the defaults over which the file is read; see Presets.
	Preset string `toml:"preset"`
	// TEE keeps the host out of the guests.
	TEE TEE `toml:"tee"`

	// StateDir holds one directory per sandbox and the cache of the accelerator probe; on a tmpfs, private to root.
	StateDir string `toml:"state_dir"`
	LogLevel Level  `toml:"log_level"`

	Hypervisor Hypervisor `toml:"hypervisor"`
	Guest      Guest      `toml:"guest"`
	Image      Image      `toml:"image"`
	Volumes    Volumes    `toml:"volumes"`
	Scratch    Scratch    `toml:"scratch"`
	Initdata   Initdata   `toml:"initdata"`
	SNP        SNP        `toml:"snp"`
	TDX        TDX        `toml:"tdx"`
	Devices    Devices    `toml:"devices"`
}

// Hypervisor says which machine a pod gets.
type Hypervisor struct {
	// Path is the QEMU binary.
	Path string `toml:"path"`
	// Accelerator is auto, kvm or tcg.
	Accelerator Accelerator `toml:"accelerator"`
	// ProbeTimeout bounds the trial boot by which auto decides.
	ProbeTimeout Duration `toml:"probe_timeout"`
	// Machine is QEMU's machine type.
	Machine string `toml:"machine"`
	// CPUModel is QEMU's CPU model; empty means host under KVM and max under TCG.
	CPUModel string `toml:"cpu_model"`

	DefaultVCPUs     uint32 `toml:"default_vcpus"`
	MaxVCPUs         uint32 `toml:"max_vcpus"`
	DefaultMemoryMiB uint32 `toml:"default_memory_mib"`
	MaxMemoryMiB     uint32 `toml:"max_memory_mib"`
	// SizeFromLimits adds to the defaults what the pod's containers may use; see Demand.
	SizeFromLimits bool `toml:"size_from_limits"`
	// EnableAnnotations names the annotations below io.katacontainers.config.hypervisor. that may replace the defaults.
	EnableAnnotations []string `toml:"enable_annotations"`

	// Kernel and Initrd are the guest image; KernelParams are appended to the driver's own command line.
	Kernel       string   `toml:"kernel"`
	Initrd       string   `toml:"initrd"`
	KernelParams []string `toml:"kernel_params"`
	// Extensions are disks besides for every guest.
	Extensions []Extension `toml:"guest_extension_images"`
	// Firmware is the image (OVMF) that the machine starts with; empty boots the kernel directly.
	Firmware string `toml:"firmware"`
	// MemoryBacking, HugePages, NUMA and NUMANodes say what memory and processors of the host a VM gets.
	MemoryBacking MemoryBacking `toml:"memory_backing"`
	HugePages     HugePages     `toml:"huge_pages"`
	NUMA          NUMA          `toml:"numa"`
	// NUMANodes are the nodes; empty means those of the pod's devices.
	NUMANodes []int `toml:"numa_nodes"`
	// AcceptMemory is heard for confidential guests.
	AcceptMemory AcceptMemory `toml:"accept_memory"`
	// Seccomp runs QEMU under its own system call filter.
	Seccomp bool `toml:"seccomp"`
	// Transport is auto, vsock or serial.
	Transport Transport `toml:"transport"`
	// ShutdownGrace is how long QEMU gets to end after it was asked to, before it is killed.
	ShutdownGrace Duration `toml:"shutdown_grace"`
}

// Guest says how the agent in the VM is treated.
type Guest struct {
	// BootTimeout bounds the time from the start of QEMU to the agent's first answer.
	BootTimeout Duration `toml:"boot_timeout"`
	// RequestTimeout bounds every other request to the agent that does not wait for a process or an image.
	RequestTimeout Duration `toml:"request_timeout"`
	// ConsoleLines is how many of the console's last lines are kept for error messages.
	ConsoleLines int `toml:"console_lines"`
	// ShowConsole lets cofferctl show the guest's console.
	ShowConsole bool `toml:"show_console"`
	// LogLevel is the agent's.
	LogLevel Level `toml:"log_level"`
}

// Image says how the guest's image pull is treated.
type Image struct {
	// CreateContainerTimeout bounds CreateContainer in the guest, which pulls, verifies and unpacks the image.
	CreateContainerTimeout Duration `toml:"create_container_timeout"`
}

// Initdata is the measured document that a pod gets when it brings none of its own.
type Initdata struct {
	// File is the document as TOML text; empty means none.
	File string `toml:"file"`
	// AllowAnnotation lets a pod bring its own document.
	AllowAnnotation bool `toml:"allow_annotation"`

	// document is File's content, read by Load.
	document []byte
}

// Document is the content of File, nil when there is none. It is set by Load only.
func (i Initdata) Document() []byte { return i.document }

// Default is the complete configuration that an empty file stands for.
func Default() *Config {
	return &Config{
		Preset:   "plain",
		TEE:      TEENone,
		StateDir: "/run/coffer",
		LogLevel: LevelInfo,
		Hypervisor: Hypervisor{
			Path:              "/usr/bin/qemu-system-x86_64",
			Accelerator:       AcceleratorAuto,
			ProbeTimeout:      Duration{15 * time.Second},
			Machine:           "q35",
			DefaultVCPUs:      1,
			MaxVCPUs:          32,
			DefaultMemoryMiB:  2048,
			MaxMemoryMiB:      65536,
			SizeFromLimits:    true,
			EnableAnnotations: []string{nameVCPUs, nameMemory},
			Kernel:            "/usr/share/coffer/guest/vmlinux",
			Initrd:            "/usr/share/coffer/guest/initrd.cpio",
			KernelParams:      []string{},
			Extensions:        []Extension{},
			MemoryBacking:     BackingPrivate,
			HugePages:         HugeNone,
			NUMA:              NUMAOff,
			NUMANodes:         []int{},
			AcceptMemory:      AcceptLazy,
			Seccomp:           true,
			Transport:         TransportAuto,
			ShutdownGrace:     Duration{3 * time.Second},
		},
		Guest: Guest{
			BootTimeout:    Duration{60 * time.Second},
			RequestTimeout: Duration{30 * time.Second},
			ConsoleLines:   200,
			LogLevel:       LevelInfo,
		},
		Image:    Image{CreateContainerTimeout: Duration{20 * time.Minute}},
		Volumes:  Volumes{MaxCopyMiB: 64, MaxCopyFiles: 4096},
		Scratch:  Scratch{Dir: "/var/lib/coffer/scratch", MaxMiB: 102400, Protection: ProtectionEncrypted},
		Initdata: Initdata{AllowAnnotation: true},
		SNP:      SNP{Policy: policyReserved | policySMT},
		TDX:      TDX{QuoteService: "unix:/var/run/tdx-qgs/qgs.socket"},
		Devices:  defaultDevices(),
	}
}

// Duration is a time span written as in Go: "300ms", "20s", "5m". It is a struct so that the TOML decoder cannot take
// a bare number for nanoseconds.
type Duration struct{ time.Duration }

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	span, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is no duration such as \"20s\" or \"5m\"", text)
	}
	d.Duration = span
	return nil
}
