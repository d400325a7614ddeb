package boot

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/coffer-project/coffer/guestpull/extension"
	"github.com/coffer-project/coffer/guestpull/gpu"
	"github.com/coffer-project/coffer/guestpull/scratch"
)

// maxCmdline is more than any kernel accepts on x86 (2 KiB), in bytes.
const maxCmdline = 64 << 10

// Params is what the kernel command line may tell the guest. On a TEE the command line is measured; elsewhere it is the
// host's word, so nothing here loosens what the guest enforces.
type Params struct {
	// LogLevel is agent.log: debug, info, warn or error. Default: info.
	LogLevel log.Level
	// ImagePullTimeout is agent.image_pull_timeout in seconds. Default: 20 minutes.
	ImagePullTimeout time.Duration
	// HotplugTimeout is agent.hotplug_timeout in seconds. Default: 10 s, which an emulated machine may need.
	HotplugTimeout time.Duration
	// CDITimeout is agent.cdi_timeout in seconds. Default: 100 s.
	CDITimeout time.Duration
	// LaunchTimeout is agent.launch_process_timeout in seconds. Default: 6 s.
	LaunchTimeout time.Duration
	// PipeSize is agent.container_pipe_size in bytes, 0 for the kernel's default. Default: 256 KiB, which one call of the
	// host can fetch; the kernel charges what is in them to the container.
	PipeSize int
	// HTTPSProxy and NoProxy are agent.https_proxy and agent.no_proxy, for pulling images.
	HTTPSProxy, NoProxy string
	// InitDataDigest is coffer.initdata_digest, written ALGORITHM:HEX. Zero when absent.
	InitDataDigest InitDataDigest
	// Scratch is coffer.scratch, encrypted or authenticated: the guest is to have a scratch disk. Default: none.
	Scratch scratch.Protection
	// Extensions are the extension images that the command line promises, kata.extension.NAME.verity_params.
	Extensions []extension.Image
	// GPU is nvrc.*, how GPUs are to be set up.
	GPU gpu.Params
	// Ignored names the agent.* parameters that this guest knows of no use for, for a warning.
	Ignored []string
}

// InitDataDigest is the digest that the initdata disk must have.
type InitDataDigest struct {
	// Algorithm is sha256, sha384 or sha512; empty when no digest was given.
	Algorithm string
	Sum       []byte
}

// digestSizes are the algorithms of initdata and their lengths in bytes.
var digestSizes = map[string]int{"sha256": 32, "sha384": 48, "sha512": 64}

// maxSeconds bounds every timeout on the command line: a day.
const maxSeconds = 24 * 60 * 60

// setters are the parameters that the guest obeys.
var setters = map[string]func(*Params, string) error{
	"agent.log":                    func(p *Params, v string) error { return setLevel(&p.LogLevel, v) },
	"agent.image_pull_timeout":     func(p *Params, v string) error { return setSeconds(&p.ImagePullTimeout, v) },
	"agent.hotplug_timeout":        func(p *Params, v string) error { return setSeconds(&p.HotplugTimeout, v) },
	"agent.cdi_timeout":            func(p *Params, v string) error { return setSeconds(&p.CDITimeout, v) },
	"agent.launch_process_timeout": func(p *Params, v string) error { return setSeconds(&p.LaunchTimeout, v) },
	"agent.container_pipe_size":    func(p *Params, v string) error { return setPipeSize(&p.PipeSize, v) },
	"agent.https_proxy":            func(p *Params, v string) error { p.HTTPSProxy = v; return nil },
	"agent.no_proxy":               func(p *Params, v string) error { p.NoProxy = v; return nil },
	"coffer.initdata_digest":       func(p *Params, v string) error { return setDigest(&p.InitDataDigest, v) },
	"coffer.scratch":               func(p *Params, v string) error { return setScratch(&p.Scratch, v) },
}

// ParseParams reads a kernel command line. Parameters that belong to the kernel are passed over; agent.* and nvrc.* parameters
// that a Kata shim may send but that mean nothing here are named in Ignored. A coffer.* or kata.extension.* parameter that is unknown,
// and any known one with a bad value or given twice, is refused with errdefs.ErrInvalidArgument.
func ParseParams(cmdline string) (Params, error) {
	p := Params{
		LogLevel:         log.InfoLevel,
		ImagePullTimeout: 20 * time.Minute,
		HotplugTimeout:   10 * time.Second,
		CDITimeout:       100 * time.Second,
		LaunchTimeout:    6 * time.Second,
		PipeSize:         256 << 10,
		GPU:              gpu.DefaultParams(),
	}
	seen := map[string]bool{}
	for word := range strings.FieldsSeq(cmdline) {
		name, value, _ := strings.Cut(word, "=")
		set, known := setter(name)
		switch {
		case !known && strings.HasPrefix(name, "coffer."):
			return Params{}, fmt.Errorf("kernel parameter %s is unknown to this guest: %w", clean(name), errdefs.ErrInvalidArgument)
		case !known && (strings.HasPrefix(name, "agent.") || gpu.IsParam(name)):
			p.Ignored = append(p.Ignored, clean(name))
			continue
		case !known:
			continue // the kernel's
		}
		if seen[name] {
			return Params{}, fmt.Errorf("kernel parameter %s is given twice: %w", name, errdefs.ErrInvalidArgument)
		}
		seen[name] = true
		if err := set(&p, value); err != nil {
			return Params{}, fmt.Errorf("kernel parameter %s: %w", name, err)
		}
	}
	slices.Sort(p.Ignored)
	p.Ignored = slices.Compact(p.Ignored)
	return p, nil
}

// setter finds who reads a parameter.
func setter(name string) (set func(*Params, string) error, known bool) {
	if extension.IsParam(name) {
		return func(p *Params, v string) error { return addExtension(&p.Extensions, name, v) }, true
	}
	if set := gpu.Setter(name); set != nil {
		return func(p *Params, v string) error { return set(&p.GPU, v) }, true
	}
	set, known = setters[name]
	return set, known
}

func addExtension(to *[]extension.Image, name, value string) error {
	image, err := extension.ParseParam(name, value)
	if err != nil {
		return err
	}
	*to = append(*to, image)
	return nil
}

func setLevel(to *log.Level, value string) error {
	switch level := log.Level(0); value {
	case "debug", "info", "warn", "error":
		if err := level.UnmarshalText([]byte(value)); err != nil {
			return err
		}
		*to = level
		return nil
	}
	return fmt.Errorf("log level must be debug, info, warn or error: %w", errdefs.ErrInvalidArgument)
}

func setSeconds(to *time.Duration, value string) error {
	seconds, err := strconv.ParseUint(value, 10, 32)
	if err != nil || seconds == 0 || seconds > maxSeconds {
		return fmt.Errorf("timeout must be 1 to %d seconds: %w", maxSeconds, errdefs.ErrInvalidArgument)
	}
	*to = time.Duration(seconds) * time.Second
	return nil
}

func setPipeSize(to *int, value string) error {
	size, err := strconv.ParseUint(value, 10, 32)
	if err != nil || size > 1<<20 {
		return fmt.Errorf("pipe size must be 0 to 1048576 bytes: %w", errdefs.ErrInvalidArgument)
	}
	*to = int(size)
	return nil
}

func setScratch(to *scratch.Protection, value string) error {
	switch p := scratch.Protection(value); p {
	case scratch.Encrypted, scratch.Authenticated:
		*to = p
		return nil
	}
	return fmt.Errorf("scratch disk must be %s or %s: %w", scratch.Encrypted, scratch.Authenticated, errdefs.ErrInvalidArgument)
}

func setDigest(to *InitDataDigest, value string) error {
	algorithm, text, _ := strings.Cut(value, ":")
	sum, err := hex.DecodeString(text)
	if size, known := digestSizes[algorithm]; err != nil || !known || len(sum) != size {
		return fmt.Errorf("digest must be sha256, sha384 or sha512, a colon, and that many hexadecimal digits: %w", errdefs.ErrInvalidArgument)
	}
	*to = InitDataDigest{Algorithm: algorithm, Sum: sum}
	return nil
}
