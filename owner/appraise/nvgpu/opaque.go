package nvgpu

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// The kinds of opaque data that are used here (NVIDIA's attestation SDK, GpuOpaqueDataType and SwitchOpaqueDataType).
const (
	opaqueDriver     = 3
	opaqueVBIOS      = 6
	opaqueNVDEC0     = 11
	opaqueCounts     = 12
	opaqueChipSKU    = 15
	opaqueProject    = 17
	opaqueProjectSKU = 18
	opaqueFWID       = 20
	opaqueSwitches   = 22 // a GPU's switches, or a switch's own name (PDI)
	opaqueGPUs       = 26 // a switch's GPUs
	opaqueVersion    = 34
	opaqueChip       = 35
	opaqueFeature    = 36
)

// opaqueNames are Trustee's.
var opaqueNames = map[uint16]string{
	1: "cert_issuer_name", 2: "cert_authority_key_identifier", opaqueDriver: "driver_version", 4: "gpu_info", 5: "id_sku",
	opaqueVBIOS: "vbios_version", 7: "manufacturer_id", 8: "tamper_detection", 9: "smc", 10: "vpr", opaqueNVDEC0: "nvdec0_status",
	opaqueCounts: "measurement_count", 13: "cpr_info", 14: "board_id", opaqueChipSKU: "chip_sku", 16: "chip_sku_mod",
	opaqueProject: "project", opaqueProjectSKU: "project_sku", 19: "project_sku_mod", opaqueFWID: "fwid", 21: "protected_pcie_status",
	opaqueSwitches: "switch_pdi", 23: "floorswept_ports", 24: "position_id", 25: "lock_switch_status", opaqueGPUs: "switch_gpu_pdis",
	32: "gpu_link_conn", 33: "sys_enable_status", opaqueVersion: "opaque_data_version", opaqueChip: "chip_info", opaqueFeature: "feature_flag",
}

// pdiSize is the size in bytes of a device's name on the links.
const pdiSize = 8

// disabled is the value of NVDEC0's status that says so; \xaa would be enabled. Its measurement then means nothing.
const disabled = "\x55"

// features are the values of the feature flag: what the GPU was set up for.
var features = []string{"SPT", "MPT", "PPCIE"}

// settings decodes the opaque data. What is not known stays as hexadecimal, under its number: newer firmware says more.
func (r *report) settings() (map[string]any, error) {
	out := map[string]any{}
	for kind, value := range r.opaque {
		name, known := opaqueNames[kind]
		if !known {
			name = "opaque_" + strconv.Itoa(int(kind))
		}
		var err error
		switch kind {
		case opaqueDriver, opaqueNVDEC0, opaqueChipSKU, 16, opaqueProject, opaqueProjectSKU, 21, opaqueChip:
			out[name] = strings.ToValidUTF8(strings.TrimRight(string(value), "\x00"), "\ufffd")
		case opaqueVBIOS:
			out[name], err = vbios(value)
		case opaqueCounts:
			out[name], err = counts(value)
		case opaqueSwitches, opaqueGPUs:
			out[name], err = names(value)
		case opaqueVersion, opaqueFeature:
			var number uint64
			if number, err = small(value); kind == opaqueVersion {
				out[name] = number
			} else if number < uint64(len(features)) {
				out[name] = features[number]
			} else {
				out[name] = "unknown"
			}
		default:
			out[name] = hex.EncodeToString(value)
		}
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

func badOpaque(what string) error {
	return fmt.Errorf("report of an NVIDIA device has a malformed %s: %w", what, errdefs.ErrInvalidArgument)
}

var versionPattern = regexp.MustCompile(`^[0-9A-Za-z]{2}(\.[0-9A-Za-z]{2}){4}$`)

// vbios writes a version as NVIDIA does. GPUs give it as two numbers, switches as text.
func vbios(value []byte) (string, error) {
	if text := strings.TrimRight(string(value), "\x00"); len(value) != 8 {
		if !versionPattern.MatchString(text) {
			return "", badOpaque("version of its firmware")
		}
		return strings.ToLower(text), nil
	}
	return fmt.Sprintf("%02x.%02x.%02x.%02x.%02x", value[3], value[2], value[1], value[0], value[4]), nil
}

func counts(value []byte) (map[string]any, error) {
	if len(value)%4 != 0 || len(value)/4 > maxBlocks {
		return nil, badOpaque("list of counts")
	}
	out := map[string]any{}
	for i := 0; i < len(value); i += 4 {
		out[strconv.Itoa(i/4+1)] = binary.LittleEndian.Uint32(value[i:])
	}
	return out, nil
}

func names(value []byte) ([]any, error) {
	if len(value)%pdiSize != 0 || len(value)/pdiSize > 64 {
		return nil, badOpaque("list of linked devices")
	}
	out := []any{}
	for i := 0; i < len(value); i += pdiSize {
		out = append(out, hex.EncodeToString(value[i:i+pdiSize]))
	}
	return out, nil
}

func small(value []byte) (uint64, error) {
	if len(value) > 8 {
		return 0, badOpaque("number")
	}
	return binary.LittleEndian.Uint64(append(append(make([]byte, 0, 8), value...), make([]byte, 8-len(value))...)), nil
}
