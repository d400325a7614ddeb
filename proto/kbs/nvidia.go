package kbs

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
)

// DeviceNVIDIA names NVIDIA's GPUs and switches in additional evidence and in tokens.
const DeviceNVIDIA = "nvidia"

// NVIDIANonce is the size in bytes of the nonce of NVIDIA's devices: the first bytes of DeviceReportData.
const NVIDIANonce = 32

// Limits of NVIDIAEvidence.
const (
	// MaxNVIDIADevices bounds the devices; the largest machine has 8 GPUs and 4 switches.
	MaxNVIDIADevices = 32
	// MaxNVIDIAReport bounds a report in its binary form, in bytes: the driver's buffer.
	MaxNVIDIAReport = 8 << 10
	// MaxNVIDIAChain bounds a certificate chain in PEM, in bytes; the driver's buffer has 5 KiB.
	MaxNVIDIAChain = 16 << 10
)

// NVIDIAArch is a generation of NVIDIA's devices that can attest.
type NVIDIAArch string

// The generations. LS10 is the switch of machines with Hopper GPUs.
const (
	NVIDIAHopper    NVIDIAArch = "HOPPER"
	NVIDIABlackwell NVIDIAArch = "BLACKWELL"
	NVIDIALS10      NVIDIAArch = "LS10"
)

// UnmarshalJSON implements json.Unmarshaler. It takes both spellings that guests use.
func (a *NVIDIAArch) UnmarshalJSON(raw []byte) error {
	var name string
	if err := json.Unmarshal(raw, &name); err != nil {
		return fmt.Errorf("arch is no string: %w", errdefs.ErrInvalidArgument)
	}
	switch arch := NVIDIAArch(strings.ToUpper(name)); arch {
	case NVIDIAHopper, NVIDIABlackwell, NVIDIALS10:
		*a = arch
		return nil
	}
	return fmt.Errorf("unknown arch: %w", errdefs.ErrInvalidArgument)
}

// NVIDIAEvidence is the evidence of all NVIDIA devices of a guest.
type NVIDIAEvidence struct {
	Devices []NVIDIADevice `json:"device_evidence_list"`
}

// NVIDIADevice is the evidence of one device.
type NVIDIADevice struct {
	Arch NVIDIAArch `json:"arch"`
	// UUID is the driver's name for the device. It is not attested, and may be missing.
	UUID string `json:"uuid"`
	// Evidence is the SPDM exchange in base64, or in hexadecimal from older guests.
	Evidence string `json:"evidence"`
	// Certificate is the chain in PEM, the device's certificate first, the whole in base64.
	Certificate string `json:"certificate"`
}

// NewNVIDIADevice encodes a report and its chain. Sizes beyond the limits are InvalidArgument.
func NewNVIDIADevice(arch NVIDIAArch, uuid string, report, chain []byte) (NVIDIADevice, error) {
	d := NVIDIADevice{Arch: arch, UUID: uuid, Evidence: base64.StdEncoding.EncodeToString(report), Certificate: base64.StdEncoding.EncodeToString(chain)}
	if _, _, err := d.Decode(); err != nil {
		return NVIDIADevice{}, err
	}
	return d, nil
}

// Decode returns the report's bytes and the chain in PEM. Errors are InvalidArgument.
func (d *NVIDIADevice) Decode() (report, chain []byte, err error) {
	if report, err = hex.DecodeString(d.Evidence); err != nil {
		report, err = base64.StdEncoding.DecodeString(d.Evidence)
	}
	if err != nil || len(report) == 0 || len(report) > MaxNVIDIAReport {
		return nil, nil, fmt.Errorf("evidence of an NVIDIA device is not base64 of 1 to %d bytes: %w", MaxNVIDIAReport, errdefs.ErrInvalidArgument)
	}
	if chain, err = base64.StdEncoding.DecodeString(d.Certificate); err != nil || len(chain) == 0 || len(chain) > MaxNVIDIAChain {
		return nil, nil, fmt.Errorf("certificate chain of an NVIDIA device is not base64 of 1 to %d bytes: %w", MaxNVIDIAChain, errdefs.ErrInvalidArgument)
	}
	return report, chain, nil
}
