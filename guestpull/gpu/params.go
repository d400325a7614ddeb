package gpu

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// Params are what the kernel command line says of GPUs, in NVRC's words. On a TEE it is measured.
type Params struct {
	// CoreClock and MemoryClock are the frequencies to lock, in MHz, and PowerLimit is in watts: nvrc.smi.lgc, .lmc and .pl.
	// 0: as the GPU itself decides.
	CoreClock, MemoryClock, PowerLimit uint32
	// UVMPersistence is nvrc.uvm.persistence.mode: the driver keeps state of unified memory between programs. Default: true.
	UVMPersistence bool
	// DCGM is nvrc.dcgm: NVIDIA's monitor runs in the guest. Default: false.
	DCGM bool
	// Verbose is nvrc.log: what the programs print is in the guest's log even when they succeed. Default: false.
	Verbose bool
}

// DefaultParams holds when the command line says nothing.
func DefaultParams() Params { return Params{UVMPersistence: true} }

// paramPrefix starts all of NVRC's parameters.
const paramPrefix = "nvrc."

// IsParam tells whether a kernel parameter is one of NVRC's, obeyed or not. Not obeyed is nvrc.smi.srs: the ready state is set by
// nothing but the attestation.
func IsParam(name string) bool { return strings.HasPrefix(name, paramPrefix) }

// Setter returns what reads the value of a parameter, nil for one that is not obeyed. A value that is none of the parameter's is
// errdefs.ErrInvalidArgument.
func Setter(name string) func(*Params, string) error {
	return setters[name]
}

var setters = map[string]func(*Params, string) error{
	"nvrc.smi.lgc":              func(p *Params, v string) error { return setNumber(&p.CoreClock, v, "MHz") },
	"nvrc.smi.lmc":              func(p *Params, v string) error { return setNumber(&p.MemoryClock, v, "MHz") },
	"nvrc.smi.pl":               func(p *Params, v string) error { return setNumber(&p.PowerLimit, v, "watts") },
	"nvrc.uvm.persistence.mode": func(p *Params, v string) error { return setBool(&p.UVMPersistence, v) },
	"nvrc.dcgm":                 func(p *Params, v string) error { return setBool(&p.DCGM, v) },
	"nvrc.log":                  setVerbose,
}

// maxNumber is above every frequency and power that there is.
const maxNumber = 100_000

func setNumber(to *uint32, value, unit string) error {
	n, err := strconv.ParseUint(value, 10, 32)
	if err != nil || n == 0 || n > maxNumber {
		return fmt.Errorf("value must be 1 to %d %s: %w", maxNumber, unit, errdefs.ErrInvalidArgument)
	}
	*to = uint32(n)
	return nil
}

func setBool(to *bool, value string) error {
	switch strings.ToLower(value) {
	case "on", "true", "1", "yes":
		*to = true
	case "off", "false", "0", "no":
		*to = false
	default:
		return fmt.Errorf("value must be on or off: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}

func setVerbose(p *Params, value string) error {
	switch strings.ToLower(value) {
	case "debug", "trace":
		p.Verbose = true
	case "", "0", "off", "error", "warn", "info":
		p.Verbose = false
	default:
		return fmt.Errorf("log level must be off, error, warn, info, debug or trace: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}
