package appraise

import (
	"bytes"
	"context"
	"errors"
	"math"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/kbs"
)

func TestVectorStatus(t *testing.T) {
	for name, tc := range map[string]struct {
		vector TrustVector
		want   Status
	}{
		"no claims":        {TrustVector{}, None},
		"good":             {TrustVector{Hardware: HardwareGenuine, Executables: ExecutablesApproved, Configuration: ConfigurationSafe}, Affirming},
		"unknown image":    {TrustVector{Hardware: HardwareGenuine, Executables: ExecutablesUnknown, Configuration: ConfigurationSafe}, Warning},
		"unknown hardware": {TrustVector{Hardware: HardwareUnknown, Executables: ExecutablesUnknown}, Contraindicated},
		"end of affirming": {TrustVector{FileSystem: 31}, Affirming},
		"end of warning":   {TrustVector{SourcedData: 95}, Warning},
		"own codes good":   {TrustVector{StorageOpaque: -32}, Affirming},
		"own codes warn":   {TrustVector{StorageOpaque: -33}, Warning},
		"own codes bad":    {TrustVector{StorageOpaque: math.MinInt8}, Contraindicated},
		"malfunction":      {TrustVector{InstanceIdentity: -1, Hardware: HardwareGenuine}, Contraindicated},
		"unparsed":         {TrustVector{RuntimeOpaque: 1}, Contraindicated},
	} {
		if got := tc.vector.Status(); got != tc.want {
			t.Errorf("%s: got %s, want %s", name, got, tc.want)
		}
	}
}

func TestBinding(t *testing.T) {
	for name, tc := range map[string]struct {
		field, data []byte
		reportData  bool // accepted as report data
		initData    bool // accepted as initdata digest
	}{
		"padded":          {[]byte("abc\x00\x00"), []byte("abc"), true, true},
		"exact":           {[]byte("abc"), []byte("abc"), true, true},
		"other":           {[]byte("abd"), []byte("abc"), false, false},
		"rest not zero":   {[]byte("abcd"), []byte("abc"), false, false},
		"longer is cut":   {[]byte("abc"), []byte("abcd"), false, true},
		"prefix only":     {[]byte("ab\x00"), []byte("abc"), false, false},
		"empty digest":    {[]byte("\x00\x00"), []byte{}, false, false},
		"empty field":     {nil, []byte("abc"), false, false},
		"nothing to bind": {[]byte("abc"), nil, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			e := Evidence{ReportData: tc.data, InitDataDigest: tc.data}
			if err := e.CheckReportData(tc.field); (err == nil) != tc.reportData || err != nil && !errors.Is(err, errdefs.ErrPermissionDenied) {
				t.Errorf("report data: %v", err)
			}
			if err := e.CheckInitData(tc.field); (err == nil) != tc.initData || err != nil && !errors.Is(err, errdefs.ErrPermissionDenied) {
				t.Errorf("initdata: %v", err)
			}
		})
	}
}

func TestParseValues(t *testing.T) {
	plain := `{"snp_launch_measurement":["AA","bb"],"snp_smt_allowed":true,"snp_bootloader":[3,4]}`
	values, err := ParseValues([]byte(plain))
	if err != nil {
		t.Fatal(err)
	}
	packed, err := values.Message()
	if err != nil {
		t.Fatal(err)
	}
	if values, err = ParseValues(packed); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		got            any
		trusted, known bool
	}{
		RefSNPMeasurement: {"aa", true, true},
		RefSNPSMTAllowed:  {false, false, true},
		RefSNPBootloader:  {uint8(4), true, true},
		RefSNPMicrocode:   {uint8(4), false, false},
	} {
		trusted, known, err := Trusts(t.Context(), values, name, tc.got)
		if err != nil || trusted != tc.trusted || known != tc.known {
			t.Errorf("%s: %v, %v, %v", name, trusted, known, err)
		}
	}
	for name, raw := range map[string]string{
		"list":         `[]`,
		"null value":   `{"a":null}`,
		"nested":       `{"a":[["b"]]}`,
		"object":       `{"a":{}}`,
		"twice":        `{"a":1,"a":2}`,
		"version":      `{"version":"0.2.0","type":"sample","payload":"e30="}`,
		"other type":   `{"version":"0.1.0","type":"swid","payload":"e30="}`,
		"not base64":   `{"version":"0.1.0","type":"sample","payload":"!"}`,
		"bad payload":  `{"version":"0.1.0","type":"sample","payload":"W10="}`,
		"more members": `{"version":"0.1.0","type":"sample","payload":"e30=","x":1}`,
		"too large":    `{"a":"` + string(bytes.Repeat([]byte("x"), maxValues)) + `"}`,
	} {
		if _, err := ParseValues([]byte(raw)); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func FuzzParseValues(f *testing.F) {
	f.Add([]byte(`{"a":["b",1,true]}`))
	f.Add([]byte(`{"version":"0.1.0","type":"sample","payload":"eyJhIjoxfQ=="}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		values, err := ParseValues(raw)
		if err != nil {
			return
		}
		packed, err := values.Message()
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := values["payload"]; ok {
			return
		}
		if again, err := ParseValues(packed); err != nil || len(again) != len(values) {
			t.Errorf("%q became %v, %v", raw, again, err)
		}
	})
}

// A store that cannot be read must not look like one that names nothing.
func TestTrustsPassesFaultsOn(t *testing.T) {
	fault := errors.New("store is down")
	if _, _, err := Trusts(t.Context(), broken{fault}, "x", "y"); !errors.Is(err, fault) {
		t.Errorf("got %v", err)
	}
}

type broken struct{ err error }

func (b broken) Reference(context.Context, string) (any, error) { return nil, b.err }

type named kbs.TEE

func (n named) TEE() kbs.TEE { return kbs.TEE(n) }
func (named) Verify(context.Context, Evidence) (*Result, error) {
	return nil, errdefs.ErrNotImplemented
}

func TestRegistry(t *testing.T) {
	r, err := NewRegistry(named(kbs.TEETDX), named(kbs.TEESNP))
	if err != nil {
		t.Fatal(err)
	}
	if got := r.TEEs(); len(got) != 2 || got[0] != kbs.TEESNP || got[1] != kbs.TEETDX {
		t.Errorf("got %v", got)
	}
	if _, ok := r.Verifier(kbs.TEESample); ok {
		t.Error("a verifier appeared from nowhere")
	}
	if v, ok := r.Verifier(kbs.TEESNP); !ok || v.TEE() != kbs.TEESNP {
		t.Errorf("got %v, %v", v, ok)
	}
	if _, err := NewRegistry(named(kbs.TEESNP), named(kbs.TEESNP)); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("got %v", err)
	}
}
