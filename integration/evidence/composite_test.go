package evidence

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/guestpull/attest"
	guestkbs "github.com/coffer-project/coffer/guestpull/kbs"
	"github.com/coffer-project/coffer/owner/appraise"
	"github.com/coffer-project/coffer/owner/appraise/collateral"
	"github.com/coffer-project/coffer/owner/appraise/nvgpu"
	"github.com/coffer-project/coffer/owner/appraise/nvgpu/nvgputest"
	"github.com/coffer-project/coffer/owner/appraise/snp"
	"github.com/coffer-project/coffer/owner/appraise/snp/snptest"
	"github.com/coffer-project/coffer/owner/broker/audit"
	"github.com/coffer-project/coffer/owner/broker/brokertest"
	"github.com/coffer-project/coffer/proto/kbs"
)

// gpus gives the evidence of forged devices, as the guest's driver would. A nonce replaces the session's.
type gpus struct {
	devices []*nvgputest.Device
	nonce   []byte
}

func (gpus) Device() string { return kbs.DeviceNVIDIA }

func (g gpus) Evidence(_ context.Context, reportData []byte) (json.RawMessage, error) {
	if g.nonce != nil {
		reportData = g.nonce
	}
	return nvgputest.Evidence(reportData, g.devices...)
}

// gpuSite is a broker that believes forged processors and forged GPUs, with manifests for the latter and a policy that asks for them.
type gpuSite struct {
	*brokertest.Broker
	processor   *snptest.Signer
	nvidia      *nvgputest.Signer
	manifests   string
	measurement []byte
}

const modelKey = "kbs:///gpu/hopper/2-model"

func newGPUSite(t *testing.T) *gpuSite {
	t.Helper()
	s := &gpuSite{manifests: t.TempDir(), measurement: bytes.Repeat([]byte{0x4d}, 48)}
	var err error
	if s.processor, err = snptest.New("Genoa"); err != nil {
		t.Fatal(err)
	}
	if s.nvidia, err = nvgputest.New(); err != nil {
		t.Fatal(err)
	}
	processorRoots, err := snp.ParseRoots(s.processor.Roots())
	if err != nil {
		t.Fatal(err)
	}
	gpuRoots, err := nvgpu.ParseRoots(s.nvidia.Roots())
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := nvgpu.New(nvgpu.Options{Collateral: &collateral.Store{Dir: s.manifests}, TestRoots: gpuRoots})
	if err != nil {
		t.Fatal(err)
	}
	s.Broker = brokertest.Start(t, brokertest.Options{RefuseSample: true, SNPTestRoots: processorRoots, Devices: []appraise.DeviceVerifier{verifier}})
	s.Put(t, uri, []byte(secret))
	s.Put(t, modelKey, []byte(secret))
	rules, err := os.ReadFile("../../contrib/policy/gpus.rego")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Policies.SetResource(t.Context(), string(rules)); err != nil {
		t.Fatal(err)
	}
	tcb := s.processor.TCB
	values, err := json.Marshal(appraise.Values{
		appraise.RefSNPMeasurement: hex.EncodeToString(s.measurement), appraise.RefSNPBootloader: tcb.Bootloader,
		appraise.RefSNPTEE: tcb.TEE, appraise.RefSNPFirmware: tcb.SNP, appraise.RefSNPMicrocode: tcb.Microcode,
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.References.Register(t.Context(), values); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *gpuSite) device(t *testing.T, arch kbs.NVIDIAArch, uuid string) *nvgputest.Device {
	t.Helper()
	d, err := s.nvidia.Device(arch, uuid)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Manifests(s.manifests); err != nil {
		t.Fatal(err)
	}
	return d
}

// guest is one on the site's processor, with devices.
func (s *gpuSite) guest(t *testing.T, devices ...attest.DeviceAttester) *guestkbs.Client {
	t.Helper()
	client, err := guestkbs.New(guestkbs.Options{
		URL: s.URL, Devices: devices, Backoff: time.Millisecond,
		Attester: machine(t, s.processor, snptest.Report{Measurement: s.measurement}, certificates(s.processor.Certificate())),
	})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// The key of a model goes to a guest with the GPUs that its owner wants, all of them genuine, measured and asked by this very guest.
func TestCompositeEvidence(t *testing.T) {
	s := newGPUSite(t)
	one, two, blackwell := s.device(t, kbs.NVIDIAHopper, "GPU-1"), s.device(t, kbs.NVIDIAHopper, "GPU-2"), s.device(t, kbs.NVIDIABlackwell, "GPU-3")
	changed, debugged := *two, *two
	changed.Measurements = map[uint8][]byte{1: bytes.Repeat([]byte{1}, 48)}
	debugged.Opaque = map[uint16][]byte{36: {2, 0}, 22: []byte("switch-1")} // trusts a switch that nobody attests
	foreign, err := nvgputest.New()
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := foreign.Device(kbs.NVIDIAHopper, "GPU-4")
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		devices []attest.DeviceAttester
		key     string
		ready   error  // whether the guest may use its GPUs
		release error  // whether it gets the key
		because string // of the broker's refusal
	}{
		"two GPUs":            {[]attest.DeviceAttester{gpus{devices: []*nvgputest.Device{one, two}}}, modelKey, nil, nil, ""},
		"a key for anybody":   {[]attest.DeviceAttester{gpus{devices: []*nvgputest.Device{one, two}}}, uri, nil, nil, ""},
		"no GPU, plain key":   {nil, uri, nil, nil, ""},
		"no GPU":              {nil, modelKey, nil, errdefs.ErrPermissionDenied, "0 protected GPUs"},
		"one GPU":             {[]attest.DeviceAttester{gpus{devices: []*nvgputest.Device{one}}}, modelKey, nil, errdefs.ErrPermissionDenied, "1 protected GPUs"},
		"one of another kind": {[]attest.DeviceAttester{gpus{devices: []*nvgputest.Device{one, blackwell}}}, modelKey, nil, errdefs.ErrPermissionDenied, "1 protected GPUs"},
		"changed software":    {[]attest.DeviceAttester{gpus{devices: []*nvgputest.Device{one, &changed}}}, modelKey, errdefs.ErrPermissionDenied, errdefs.ErrPermissionDenied, "gpu1 was appraised"},
		"unattested switch":   {[]attest.DeviceAttester{gpus{devices: []*nvgputest.Device{&debugged, one}}}, uri, errdefs.ErrPermissionDenied, errdefs.ErrPermissionDenied, "gpu0 was appraised"},
		"one GPU twice":       {[]attest.DeviceAttester{gpus{devices: []*nvgputest.Device{one, one}}}, modelKey, errdefs.ErrPermissionDenied, errdefs.ErrPermissionDenied, "twice"},
		"no real GPU":         {[]attest.DeviceAttester{gpus{devices: []*nvgputest.Device{one, stranger}}}, uri, errdefs.ErrPermissionDenied, errdefs.ErrPermissionDenied, "root"},
		"of an older session": {[]attest.DeviceAttester{gpus{devices: []*nvgputest.Device{one, two}, nonce: make([]byte, 32)}}, uri, errdefs.ErrPermissionDenied, errdefs.ErrPermissionDenied, "session"},
	} {
		t.Run(name, func(t *testing.T) {
			client := s.guest(t, tc.devices...)
			if err := client.Attest(t.Context()); !errors.Is(err, tc.ready) {
				t.Errorf("attest: %v", err)
			}
			got, err := client.Resource(t.Context(), tc.key)
			if !errors.Is(err, tc.release) || err == nil && string(got) != secret || err != nil && !strings.Contains(err.Error(), tc.because) {
				t.Errorf("key: got %d bytes, %v", len(got), err)
			}
		})
	}
	t.Run("claims", func(t *testing.T) {
		var claims string
		for _, r := range s.Audit() {
			if r.Event == audit.EventAttest && strings.Contains(string(r.Claims), `"gpu1"`) && r.Decision == audit.Allowed {
				claims = string(r.Claims)
			}
		}
		for _, want := range []string{`"cpu0"`, `"gpu0"`, `"nvidia"`, nvgpu.ForgedPolicyID, nvgputest.Driver} {
			if !strings.Contains(claims, want) {
				t.Errorf("audit log does not show %s", want)
			}
		}
	})
}

// failing devices must cost the attestation, not be left out.
type failing struct{ gpus }

func (failing) Evidence(context.Context, []byte) (json.RawMessage, error) {
	return nil, fmt.Errorf("driver is gone: %w", errdefs.ErrUnavailable)
}

// idle devices have no evidence, and need none.
type idle struct{ gpus }

func (idle) Evidence(context.Context, []byte) (json.RawMessage, error) { return nil, nil }

func TestDevicesThatGiveNoEvidence(t *testing.T) {
	s := newGPUSite(t)
	client := s.guest(t, failing{})
	if _, err := client.Resource(t.Context(), uri); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	if n := s.Requests("attest"); n != 0 {
		t.Errorf("%d attestations without the devices", n)
	}
	// A guest whose devices are for nobody's secrets says nothing of them, and has no GPUs for the broker or for itself.
	client = s.guest(t, idle{})
	if got, err := client.Resource(t.Context(), uri); err != nil || string(got) != secret {
		t.Errorf("plain key: got %d bytes, %v", len(got), err)
	}
	if _, err := client.Resource(t.Context(), modelKey); !errors.Is(err, errdefs.ErrPermissionDenied) {
		t.Errorf("key for GPUs: got %v", err)
	}
	if err := client.Attest(t.Context()); !errors.Is(err, errdefs.ErrPermissionDenied) || !strings.Contains(err.Error(), "nvidia") {
		t.Errorf("attest: got %v", err)
	}
	if _, err := guestkbs.New(guestkbs.Options{URL: s.URL, Attester: attest.NewSample(), Devices: []attest.DeviceAttester{gpus{}, gpus{}}}); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("two of one kind: %v", err)
	}
}

// What a host takes away from evidence on its way, or puts in place of it, is noticed: the processor has signed the GPUs' part, too.
func TestAdditionalEvidenceIsBound(t *testing.T) {
	s := newGPUSite(t)
	one, two := s.device(t, kbs.NVIDIAHopper, "GPU-1"), s.device(t, kbs.NVIDIAHopper, "GPU-2")
	for name, edit := range map[string]func(t *testing.T, a *kbs.Attestation){
		"taken away": func(_ *testing.T, a *kbs.Attestation) { a.Evidence.Additional = "" },
		"one of two": func(t *testing.T, a *kbs.Attestation) {
			t.Helper()
			reportData, err := kbs.DeviceReportData(kbs.DefaultHash, a.RuntimeData.Nonce, a.RuntimeData.TEEPublicKey)
			if err != nil {
				t.Fatal(err)
			}
			raw, err := nvgputest.Evidence(reportData, one)
			if err != nil {
				t.Fatal(err)
			}
			a.Evidence.Additional = `{"nvidia":` + string(raw) + `}`
		},
		"one blank more": func(_ *testing.T, a *kbs.Attestation) { a.Evidence.Additional += " " },
	} {
		t.Run(name, func(t *testing.T) {
			client, err := guestkbs.New(guestkbs.Options{
				URL: s.URL, Backoff: time.Millisecond, HTTPClient: tampering(t, edit), Devices: []attest.DeviceAttester{gpus{devices: []*nvgputest.Device{one, two}}},
				Attester: machine(t, s.processor, snptest.Report{Measurement: s.measurement}, certificates(s.processor.Certificate())),
			})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := client.Resource(t.Context(), uri); !errors.Is(err, errdefs.ErrPermissionDenied) || !strings.Contains(err.Error(), "session") {
				t.Errorf("got %v", err)
			}
		})
	}
}
