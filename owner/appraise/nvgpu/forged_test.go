package nvgpu_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/owner/appraise"
	"github.com/coffer-project/coffer/owner/appraise/collateral"
	"github.com/coffer-project/coffer/owner/appraise/nvgpu"
	"github.com/coffer-project/coffer/owner/appraise/nvgpu/nvgputest"
	"github.com/coffer-project/coffer/proto/kbs"
)

// site is an owner's: a signer that it believes, and a tree of collateral.
type site struct {
	*nvgputest.Signer
	dir string
}

func newSite(t *testing.T) *site {
	t.Helper()
	signer, err := nvgputest.New()
	if err != nil {
		t.Fatal(err)
	}
	return &site{signer, t.TempDir()}
}

// device makes a device whose manifests are in the tree.
func (s *site) device(t *testing.T, arch kbs.NVIDIAArch, uuid string) *nvgputest.Device {
	t.Helper()
	d, err := s.Device(arch, uuid)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Manifests(s.dir); err != nil {
		t.Fatal(err)
	}
	return d
}

func (s *site) verify(t *testing.T, o nvgpu.Options, devices ...*nvgputest.Device) ([]appraise.DeviceResult, error) {
	t.Helper()
	var err error
	if o.TestRoots, err = nvgpu.ParseRoots(s.Roots()); err != nil {
		t.Fatal(err)
	}
	o.Collateral = &collateral.Store{Dir: s.dir}
	v, err := nvgpu.New(o)
	if err != nil {
		t.Fatal(err)
	}
	reportData := bytes.Repeat([]byte{0x5e}, 48)
	raw, err := nvgputest.Evidence(reportData, devices...)
	if err != nil {
		t.Fatal(err)
	}
	return v.VerifyDevices(t.Context(), appraise.Evidence{Raw: raw, ReportData: reportData})
}

// A device is approved when it measured what NVIDIA did, and in versions that the owner named, if it named some.
func TestVerdicts(t *testing.T) {
	named := appraise.Values{appraise.RefNVIDIADriver: []any{"1.2", nvgputest.Driver}, appraise.RefNVIDIAVBIOS: nvgputest.VBIOS}
	other := appraise.Values{appraise.RefNVIDIADriver: []any{"1.2"}, appraise.RefNVIDIAVBIOS: nvgputest.VBIOS}
	changed := bytes.Repeat([]byte{0xee}, 48)
	for _, arch := range []kbs.NVIDIAArch{kbs.NVIDIAHopper, kbs.NVIDIABlackwell} {
		for name, tc := range map[string]struct {
			references appraise.Values
			edit       func(*nvgputest.Device)
			want       appraise.TrustVector
			measured   any
		}{
			"as measured":           {nil, nil, appraise.TrustVector{Hardware: 2, Executables: 3, Configuration: 3}, "success"},
			"named versions":        {named, nil, appraise.TrustVector{Hardware: 2, Executables: 3, Configuration: 2}, "success"},
			"other driver":          {other, nil, appraise.TrustVector{Hardware: 2, Executables: 3, Configuration: 36}, "success"},
			"changed driver":        {named, func(d *nvgputest.Device) { d.Measurements[10] = changed }, appraise.TrustVector{Hardware: 2, Executables: 33, Configuration: 36}, "fail"},
			"changed firmware":      {named, func(d *nvgputest.Device) { d.Measurements[1] = changed }, appraise.TrustVector{Hardware: 2, Executables: 33, Configuration: 36}, "fail"},
			"missing measurement":   {named, func(d *nvgputest.Device) { delete(d.Measurements, 12) }, appraise.TrustVector{Hardware: 2, Executables: 33, Configuration: 36}, "fail"},
			"measured, not in them": {nil, func(d *nvgputest.Device) { d.Measurements[64] = changed }, appraise.TrustVector{Hardware: 2, Executables: 3, Configuration: 3}, "success"},
			"unknown driver":        {named, func(d *nvgputest.Device) { d.Driver = "1.2" }, appraise.TrustVector{Hardware: 2, Executables: 33, Configuration: 36}, nil},
			"driver names a path":   {named, func(d *nvgputest.Device) { d.Driver = "../../../x" }, appraise.TrustVector{Hardware: 2, Executables: 33, Configuration: 36}, nil},
			"switches not attested": {named, func(d *nvgputest.Device) { d.Opaque[36], d.Opaque[22] = []byte{2, 0}, []byte("switch-1") }, appraise.TrustVector{Hardware: 2, Executables: 3, Configuration: 96}, "success"},
			"more than we know":     {nil, func(d *nvgputest.Device) { d.Opaque[200] = []byte{1} }, appraise.TrustVector{Hardware: 2, Executables: 3, Configuration: 3}, "success"},
		} {
			t.Run(string(arch)+" "+name, func(t *testing.T) {
				s := newSite(t)
				d := s.device(t, arch, "GPU-0")
				if tc.edit != nil {
					tc.edit(d)
				}
				results, err := s.verify(t, nvgpu.Options{References: tc.references}, d)
				if err != nil {
					t.Fatal(err)
				}
				r := results[0]
				if r.Vector != tc.want || r.Status != tc.want.Status() || r.Claims["measres"] != tc.measured || r.PolicyID != nvgpu.ForgedPolicyID || r.Claims["test_roots"] != true {
					t.Errorf("got %s %+v, measured %v, by %s", r.Status, r.Vector, r.Claims["measres"], r.PolicyID)
				}
			})
		}
	}
}

// The GPUs of one machine are safe with all of its switches, and only then; any of them that is not genuine costs the others their word.
func TestAllOrNothing(t *testing.T) {
	s := newSite(t)
	link := func(d *nvgputest.Device) *nvgputest.Device {
		d.Opaque[36], d.Opaque[22] = []byte{2, 0}, append([]byte{1, 2, 3, 4, 5, 6, 7, 8}, make([]byte, 8)...)
		return d
	}
	first, second := link(s.device(t, kbs.NVIDIAHopper, "GPU-0")), link(s.device(t, kbs.NVIDIAHopper, "GPU-1"))
	hub := s.device(t, kbs.NVIDIALS10, "SWX-0")
	results, err := s.verify(t, nvgpu.Options{}, first, second, hub)
	if err != nil || len(results) != 3 || results[0].Class != "gpu" || results[2].Class != "switch" {
		t.Fatalf("got %+v, %v", results, err)
	}
	for i, r := range results {
		if r.Status != appraise.Affirming {
			t.Errorf("device %d: %s %+v", i, r.Status, r.Vector)
		}
	}
	if results, err = s.verify(t, nvgpu.Options{}, first, second); err != nil || results[0].Status != appraise.Contraindicated || results[1].Status != appraise.Contraindicated {
		t.Errorf("without the switch: %+v, %v", results, err)
	}
	if results, err = s.verify(t, nvgpu.Options{}, first, second, first); !errdefs.IsPermissionDenied(err) {
		t.Errorf("one GPU twice: %+v, %v", results, err)
	}
	foreign := newSite(t).device(t, kbs.NVIDIAHopper, "GPU-2")
	if results, err = s.verify(t, nvgpu.Options{}, first, foreign, hub); !errdefs.IsPermissionDenied(err) || results != nil {
		t.Errorf("with a foreign GPU: %+v, %v", results, err)
	}
	second.FWID = bytes.Repeat([]byte{0xf2}, 48)
	if results, err = s.verify(t, nvgpu.Options{}, first, second, hub); !errdefs.IsPermissionDenied(err) || results != nil {
		t.Errorf("with other firmware than its certificate is for: %+v, %v", results, err)
	}
}

func TestRevocation(t *testing.T) {
	now := time.Now()
	for name, tc := range map[string]struct {
		answers, revoked bool
		at               time.Time
		require          bool
		want             error
		status           string
	}{
		"nothing known":         {false, false, now, false, nil, "unknown"},
		"nothing known, wanted": {false, false, now, true, errdefs.ErrNotFound, ""},
		"good":                  {true, false, now, true, nil, "good"},
		"revoked":               {true, true, now, false, errdefs.ErrPermissionDenied, ""},
		"revoked, answer old":   {true, true, now.Add(-48 * time.Hour), false, errdefs.ErrPermissionDenied, ""},
		"old":                   {true, false, now.Add(-48 * time.Hour), false, nil, "unknown"},
		"old, wanted":           {true, false, now.Add(-48 * time.Hour), true, errdefs.ErrFailedPrecondition, ""},
		"from the future":       {true, false, now.Add(48 * time.Hour), true, errdefs.ErrFailedPrecondition, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			d := s.device(t, kbs.NVIDIAHopper, "GPU-0")
			if tc.answers {
				if err := d.Answers(s.dir, tc.at, tc.revoked); err != nil {
					t.Fatal(err)
				}
			}
			results, err := s.verify(t, nvgpu.Options{RequireOCSP: tc.require}, d)
			if !errors.Is(err, tc.want) {
				t.Fatalf("got %v", err)
			}
			if err != nil {
				return
			}
			chain, _ := results[0].Claims["x-nvidia-gpu-attestation-report-cert-chain"].(map[string]any)
			if got := chain["x-nvidia-cert-ocsp-status"]; got != tc.status {
				t.Errorf("got %v", got)
			}
		})
	}
	t.Run("of another issuer", func(t *testing.T) {
		s, foreign := newSite(t), newSite(t)
		d, other := s.device(t, kbs.NVIDIAHopper, "GPU-0"), foreign.device(t, kbs.NVIDIAHopper, "GPU-0")
		if err := errors.Join(d.Answers(s.dir, now, false), other.Answers(foreign.dir, now, false)); err != nil {
			t.Fatal(err)
		}
		var answer []byte
		find := func(dir string, do func(name string)) {
			names, err := filepath.Glob(filepath.Join(dir, "ocsp.ndis.nvidia.com", "*", "*"))
			if err != nil || len(names) == 0 {
				t.Fatalf("got %v, %v", names, err)
			}
			for _, name := range names {
				do(name)
			}
		}
		read := func(name string) {
			var err error
			if answer, err = os.ReadFile(name); err != nil {
				t.Fatal(err)
			}
		}
		find(foreign.dir, read)
		find(s.dir, func(name string) {
			if err := os.WriteFile(name, answer, 0o600); err != nil {
				t.Fatal(err)
			}
		})
		if _, err := s.verify(t, nvgpu.Options{RequireOCSP: true}, d); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("got %v", err)
		}
	})
}

// What somebody else signed, or nobody, is no manifest.
func TestManifestsThatAreRefused(t *testing.T) {
	for name, edit := range map[string]func(t *testing.T, text string) string{
		"untouched": func(_ *testing.T, text string) string { return text },
		"as the service answers": func(_ *testing.T, text string) string {
			return `{"id":"x","sha256":"y","rim":"` + base64.StdEncoding.EncodeToString([]byte(text)) + `"}`
		},
		"changed value": func(_ *testing.T, text string) string { return strings.Replace(text, "0a0a", "0b0a", 1) },
		"switched off": func(_ *testing.T, text string) string {
			return strings.Replace(text, `active="True"`, `active="False"`, 1)
		},
		"other version": func(_ *testing.T, text string) string { return strings.Replace(text, nvgputest.Driver, "570.00.02", 1) },
		"no signature": func(_ *testing.T, text string) string {
			return text[:strings.Index(text, "<ds:Signature")] + "</SoftwareIdentity>"
		},
		"no XML":         func(*testing.T, string) string { return "hello" },
		"empty":          func(*testing.T, string) string { return "" },
		"JSON with none": func(*testing.T, string) string { return `{"id":"x"}` },
		// A signed manifest inside of an unsigned one: what counts must be what is signed.
		"wrapped": func(_ *testing.T, text string) string {
			return `<SoftwareIdentity><Meta colloquialVersion="` + nvgputest.Driver + `"/><Payload/>` + text + `</SoftwareIdentity>`
		},
		"other signer": func(t *testing.T, _ string) string {
			foreign := newSite(t)
			foreign.device(t, kbs.NVIDIAHopper, "GPU-0")
			raw, err := os.ReadFile(filepath.Join(foreign.dir, driverManifest))
			if err != nil {
				t.Fatal(err)
			}
			return string(raw)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			d := s.device(t, kbs.NVIDIAHopper, "GPU-0")
			file := filepath.Join(s.dir, driverManifest)
			raw, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(edit(t, string(raw))), 0o600); err != nil {
				t.Fatal(err)
			}
			want := appraise.Warning
			if name == "untouched" || name == "as the service answers" {
				want = appraise.Affirming
			}
			results, err := s.verify(t, nvgpu.Options{}, d)
			if err != nil || results[0].Status != want {
				t.Errorf("got %+v, %v", results, err)
			}
		})
	}
}

const driverManifest = "rim.attestation.nvidia.com/v1/rim/NV_GPU_DRIVER_GH100_" + nvgputest.Driver

func TestRootsThatAreRefused(t *testing.T) {
	s := newSite(t)
	roots := string(s.Roots())
	half := strings.Index(roots[10:], "-----BEGIN") + 10
	for name, text := range map[string]string{
		"none": "", "one": roots[:half], "the other": roots[half:], "no root": string(s.device(t, kbs.NVIDIAHopper, "GPU-0").Chain()),
	} {
		if _, err := nvgpu.ParseRoots([]byte(text)); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := nvgpu.ParseRoots([]byte(roots)); err != nil {
		t.Error(err)
	}
}
