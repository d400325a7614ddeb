package config

import (
	"slices"
	"strings"
)

// Accelerator is how QEMU runs guest code.
type Accelerator string

// Accelerators.
const (
	// AcceleratorAuto boots the guest kernel once under KVM and falls back to TCG when that does not work.
	AcceleratorAuto Accelerator = "auto"
	AcceleratorKVM  Accelerator = "kvm"
	AcceleratorTCG  Accelerator = "tcg"
)

// Transport is how the shim reaches the guest.
type Transport string

// Transports.
const (
	// TransportAuto is vsock where /dev/vhost-vsock opens, serial elsewhere.
	TransportAuto   Transport = "auto"
	TransportVsock  Transport = "vsock"
	TransportSerial Transport = "serial"
)

// Level is a log level.
type Level string

// Levels.
const (
	LevelTrace Level = "trace"
	LevelDebug Level = "debug"
	LevelInfo  Level = "info"
	LevelWarn  Level = "warn"
	LevelError Level = "error"
)

// checkEnum reports a value that is none of known. The enums are plain strings to the TOML decoder (it hands no
// string kind to UnmarshalText), so Validate is what refuses an unknown word.
func checkEnum[E ~string](fault faultFunc, key string, value E, known ...E) {
	if slices.Contains(known, value) {
		return
	}
	names := make([]string, len(known))
	for i, k := range known {
		names[i] = string(k)
	}
	fault(key, "%q is none of %s", value, strings.Join(names, ", "))
}
