package appraise

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/kbs"
)

// The names of reference values. They are those of Trustee's default policy, so that one set of values serves both brokers.
const (
	RefSNPMeasurement  = "snp_launch_measurement"
	RefSNPBootloader   = "snp_bootloader"
	RefSNPMicrocode    = "snp_microcode"
	RefSNPFirmware     = "snp_snp_svn"
	RefSNPTEE          = "snp_tee_svn"
	RefSNPFMC          = "snp_fmc" // ours: Trustee knows no name for Turin's additional version
	RefSNPSMTEnabled   = "snp_smt_enabled"
	RefSNPTSMEEnabled  = "snp_tsme_enabled"
	RefSNPABIMajor     = "snp_guest_abi_major"
	RefSNPABIMinor     = "snp_guest_abi_minor"
	RefSNPSingleSocket = "snp_single_socket"
	RefSNPSMTAllowed   = "snp_smt_allowed"
	RefTDXMRTD         = "mr_td"
	RefTDXRTMR0        = "rtmr_0"
	RefTDXRTMR1        = "rtmr_1"
	RefTDXRTMR2        = "rtmr_2"
	RefTDXXFAM         = "xfam"
	RefNVIDIAVBIOS     = "allowed_vbios_versions"
	RefNVIDIADriver    = "allowed_driver_versions"
)

// References gives the values that the owner trusts. Calls may be concurrent.
type References interface {
	// Reference returns what is trusted under a name: a string, number (float64) or boolean, or a list of them of which any is trusted;
	// nil where the owner named nothing. An error means that the values could not be read; nothing may be trusted then.
	Reference(ctx context.Context, name string) (any, error)
}

// Values is a fixed set of References.
type Values map[string]any

// Reference implements References.
func (v Values) Reference(_ context.Context, name string) (any, error) { return v[name], nil }

// maxValues bounds a file of reference values in bytes.
const maxValues = 1 << 20

// rvpsVersion is the version of messages to Trustee's reference value provider.
const rvpsVersion = "0.1.0"

// message is how Trustee's reference value provider takes values in.
type message struct {
	Version string `json:"version"`
	Type    string `json:"type"`
	Payload string `json:"payload"`
}

// ParseValues reads reference values: a JSON object of names and values, or a message to Trustee's reference value provider of type
// "sample", which holds such an object. Errors are InvalidArgument.
func ParseValues(raw []byte) (Values, error) {
	var members map[string]any
	if err := kbs.Decode(raw, maxValues, &members); err != nil {
		return nil, fmt.Errorf("reference values: %w", err)
	}
	if _, ok := members["payload"]; ok {
		var m message
		if err := kbs.DecodeStrict(raw, maxValues, &m); err != nil {
			return nil, fmt.Errorf("reference value message: %w", err)
		}
		if m.Version != rvpsVersion || m.Type != "sample" {
			return nil, fmt.Errorf("reference value message is not of version %s and type sample: %w", rvpsVersion, errdefs.ErrInvalidArgument)
		}
		payload, err := base64.StdEncoding.DecodeString(m.Payload)
		if err != nil {
			return nil, fmt.Errorf("payload of the reference value message is not base64: %w", errdefs.ErrInvalidArgument)
		}
		members = nil
		if err := kbs.Decode(payload, maxValues, &members); err != nil {
			return nil, fmt.Errorf("payload of the reference value message: %w", err)
		}
	}
	if members == nil {
		return nil, fmt.Errorf("reference values are no JSON object: %w", errdefs.ErrInvalidArgument)
	}
	for name, value := range members {
		if err := checkValue(value, true); err != nil {
			return nil, fmt.Errorf("reference value %.64q: %w", name, err)
		}
	}
	return members, nil
}

func checkValue(value any, listAllowed bool) error {
	switch v := value.(type) {
	case string, float64, bool:
		return nil
	case []any:
		if !listAllowed {
			break
		}
		for _, entry := range v {
			if err := checkValue(entry, false); err != nil {
				return err
			}
		}
		return nil
	}
	return fmt.Errorf("it is no string, number, boolean or list of them: %w", errdefs.ErrInvalidArgument)
}

// Message returns v as a message to Trustee's reference value provider.
func (v Values) Message() ([]byte, error) {
	payload, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode reference values: %w", err)
	}
	raw, err := json.Marshal(message{Version: rvpsVersion, Type: "sample", Payload: base64.StdEncoding.EncodeToString(payload)})
	if err != nil {
		return nil, fmt.Errorf("encode reference value message: %w", err)
	}
	return raw, nil
}

// Trusts reports whether got is what refs names, or one of it. Hexadecimal strings compare whatever their case. known tells whether
// refs names anything at all.
func Trusts(ctx context.Context, refs References, name string, got any) (trusted, known bool, err error) {
	want, err := refs.Reference(ctx, name)
	if err != nil {
		return false, false, fmt.Errorf("read reference value %s: %w", name, err)
	}
	if want == nil {
		return false, false, nil
	}
	list, ok := want.([]any)
	if !ok {
		list = []any{want}
	}
	for _, entry := range list {
		if sameValue(entry, got) {
			return true, true, nil
		}
	}
	return false, true, nil
}

func sameValue(want, got any) bool {
	switch g := got.(type) {
	case string:
		w, ok := want.(string)
		return ok && strings.EqualFold(w, g)
	case bool:
		w, ok := want.(bool)
		return ok && w == g
	case uint8:
		w, ok := want.(float64)
		return ok && w == float64(g)
	}
	return false
}
