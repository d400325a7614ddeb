//go:build nvml

package nvml_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxb200"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxh100"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/server"

	"github.com/coffer-project/coffer/guestpull/attest/nvgpu"
	"github.com/coffer-project/coffer/guestpull/attest/nvgpu/helper"
	nvmldriver "github.com/coffer-project/coffer/guestpull/attest/nvgpu/nvml"
	"github.com/coffer-project/coffer/proto/kbs"
)

// machine is one of NVIDIA's, in its own mock, with confidential computing as state and settings say.
type machine struct {
	*server.Server
	state    nvml.ConfComputeSystemState
	settings nvml.SystemConfComputeSettings
	ready    uint32
	open     int // connections to the driver
}

func newMachine(s *server.Server) *machine {
	m := &machine{Server: s, state: nvml.ConfComputeSystemState{Environment: nvml.CC_SYSTEM_ENVIRONMENT_PROD, CcFeature: nvml.CC_SYSTEM_FEATURE_ENABLED}}
	s.InitFunc = func() nvml.Return { m.open++; return nvml.SUCCESS }
	s.ShutdownFunc = func() nvml.Return { m.open--; return nvml.SUCCESS }
	s.SystemGetConfComputeStateFunc = func() (nvml.ConfComputeSystemState, nvml.Return) { return m.state, nvml.SUCCESS }
	s.SystemGetConfComputeSettingsFunc = func() (nvml.SystemConfComputeSettings, nvml.Return) { return m.settings, nvml.SUCCESS }
	s.SystemGetConfComputeGpusReadyStateFunc = func() (uint32, nvml.Return) { return m.ready, nvml.SUCCESS }
	s.SystemSetConfComputeGpusReadyStateFunc = func(value uint32) nvml.Return { m.ready = value; return nvml.SUCCESS }
	for i := range s.Devices {
		d := m.device(i)
		d.GetPciInfoFunc = func() (nvml.PciInfo, nvml.Return) { return nvml.PciInfo{Bus: uint32(0x10 + i)}, nvml.SUCCESS }
		d.GetConfComputeGpuCertificateFunc = func() (nvml.ConfComputeGpuCertificate, nvml.Return) {
			var c nvml.ConfComputeGpuCertificate
			c.AttestationCertChainSize = uint32(copy(c.AttestationCertChain[:], fmt.Sprintf("chain %d", i)))
			return c, nvml.SUCCESS
		}
		d.GetConfComputeGpuAttestationReportFunc = func(r *nvml.ConfComputeGpuAttestationReport) nvml.Return {
			r.AttestationReportSize = uint32(copy(r.AttestationReport[:], fmt.Sprintf("report %d on %s", i, r.Nonce[:])))
			return nvml.SUCCESS
		}
	}
	return m
}

func (m *machine) device(i int) *server.Device {
	d, _ := m.Devices[i].(*server.Device)
	return d
}

func h100() *machine { return newMachine(dgxh100.New()) }

// ask runs the program on a question, and fails the test if it leaves a connection open.
func (m *machine) ask(t *testing.T, question string) *nvgpu.Answer {
	t.Helper()
	var out bytes.Buffer
	code := helper.Main(bytes.NewReader([]byte(question+"\n")), &out, func() (helper.Library, func() error, error) { return nvmldriver.OpenWith(m) })
	var a nvgpu.Answer
	if err := json.Unmarshal(out.Bytes(), &a); err != nil || code != 0 {
		t.Fatalf("status %d, answer %s, %v", code, &out, err)
	}
	if m.open != 0 {
		t.Errorf("%d connections are left open", m.open)
	}
	return &a
}

const (
	askGPUs  = `{"version":1,"op":"gpus"}`
	askState = `{"version":1,"op":"state"}`
)

var (
	nonce       = bytes.Repeat([]byte("n"), kbs.NVIDIANonce)
	askEvidence = fmt.Sprintf(`{"version":1,"op":"evidence","nonce":%q}`, base64.StdEncoding.EncodeToString(nonce))
)

func TestGPUs(t *testing.T) {
	for want, m := range map[kbs.NVIDIAArch]*machine{kbs.NVIDIAHopper: h100(), kbs.NVIDIABlackwell: newMachine(dgxb200.New())} {
		a := m.ask(t, askGPUs)
		if a.Failure != nil || len(*a.GPUs) != 8 {
			t.Fatalf("%s: got %+v", want, a)
		}
		for i, g := range *a.GPUs {
			if g.Index != i || g.Arch != want || g.UUID != m.device(i).UUID || g.Name == "" || g.Address != fmt.Sprintf("0000:%02x:00.0", 0x10+i) {
				t.Errorf("%s: got %+v", want, g)
			}
		}
	}
}

func TestState(t *testing.T) {
	for name, tc := range map[string]struct {
		edit func(*machine)
		want nvgpu.State
	}{
		"on":        {func(*machine) {}, nvgpu.State{Mode: nvgpu.ModeOn, MultiGPU: nvgpu.MultiGPUNone, Production: true}},
		"off":       {func(m *machine) { m.state.CcFeature = nvml.CC_SYSTEM_FEATURE_DISABLED }, nvgpu.State{Mode: nvgpu.ModeOff, MultiGPU: nvgpu.MultiGPUNone, Production: true}},
		"debugged":  {func(m *machine) { m.state.DevToolsMode = nvml.CC_SYSTEM_DEVTOOLS_MODE_ON }, nvgpu.State{Mode: nvgpu.ModeDevTools, MultiGPU: nvgpu.MultiGPUNone, Production: true}},
		"simulated": {func(m *machine) { m.state.Environment = nvml.CC_SYSTEM_ENVIRONMENT_SIM }, nvgpu.State{Mode: nvgpu.ModeOn, MultiGPU: nvgpu.MultiGPUNone}},
		"links":     {func(m *machine) { m.settings.MultiGpuMode = nvml.CC_SYSTEM_MULTIGPU_NVLE }, nvgpu.State{Mode: nvgpu.ModeOn, MultiGPU: nvgpu.MultiGPUNVLink, Production: true}},
		"older driver": {func(m *machine) {
			m.LookupSymbolFunc = func(name string) error {
				if name == "nvmlSystemGetConfComputeSettings" {
					return errors.New("missing")
				}
				return nil
			}
			m.SystemGetConfComputeSettingsFunc = nil // would end the program
		}, nvgpu.State{Mode: nvgpu.ModeOn, MultiGPU: nvgpu.MultiGPUNone, Production: true}},
	} {
		t.Run(name, func(t *testing.T) {
			m := h100()
			tc.edit(m)
			for _, ready := range []bool{false, true, false} {
				if a := m.ask(t, fmt.Sprintf(`{"version":1,"op":"set-ready","ready":%t}`, ready)); a.Failure != nil || !a.Done {
					t.Fatalf("got %+v", a)
				}
				a := m.ask(t, askState)
				if a.Failure != nil {
					t.Fatalf("got %+v", a.Failure)
				}
				tc.want.Ready, tc.want.Driver = ready, m.DriverVersion
				if *a.State != tc.want {
					t.Errorf("got %+v, want %+v", *a.State, tc.want)
				}
			}
		})
	}
}

func TestEvidence(t *testing.T) {
	m := h100()
	a := m.ask(t, askEvidence)
	if a.Failure != nil || len(a.Evidence.Devices) != 8 {
		t.Fatalf("got %+v", a)
	}
	for i, d := range a.Evidence.Devices {
		report, chain, err := d.Decode()
		if err != nil || string(report) != fmt.Sprintf("report %d on %s", i, nonce) || string(chain) != fmt.Sprintf("chain %d", i) || d.Arch != kbs.NVIDIAHopper || d.UUID != m.device(i).UUID {
			t.Errorf("GPU %d: got %q %q %+v, %v", i, report, chain, d, err)
		}
	}
}

// What keeps one GPU from giving evidence is an error for all, with a class that tells the guest what to do.
func TestFailures(t *testing.T) {
	for name, tc := range map[string]struct {
		question string
		edit     func(*machine)
		class    string
	}{
		"no driver":  {askGPUs, func(m *machine) { m.InitFunc = func() nvml.Return { return nvml.ERROR_DRIVER_NOT_LOADED } }, "failed-precondition"},
		"no library": {askGPUs, func(m *machine) { m.InitFunc = func() nvml.Return { return nvml.ERROR_LIBRARY_NOT_FOUND } }, "failed-precondition"},
		"lost GPU": {askGPUs, func(m *machine) {
			m.device(3).GetUUIDFunc = func() (string, nvml.Return) { return "", nvml.ERROR_GPU_IS_LOST }
		}, "unavailable"},
		"old driver":   {askState, func(m *machine) { m.LookupSymbolFunc = func(string) error { return errors.New("missing") } }, "not-implemented"},
		"unknown mode": {askState, func(m *machine) { m.settings.MultiGpuMode = 9 }, "not-implemented"},
		"not allowed": {`{"version":1,"op":"set-ready","ready":true}`, func(m *machine) {
			m.SystemSetConfComputeGpusReadyStateFunc = func(uint32) nvml.Return { return nvml.ERROR_NO_PERMISSION }
		}, "permission-denied"},
		"off":      {askEvidence, func(m *machine) { m.state.CcFeature = nvml.CC_SYSTEM_FEATURE_DISABLED }, "failed-precondition"},
		"switches": {askEvidence, func(m *machine) { m.settings.MultiGpuMode = nvml.CC_SYSTEM_MULTIGPU_PROTECTED_PCIE }, "not-implemented"},
		"no GPU":   {askEvidence, func(m *machine) { m.Devices = nil }, "failed-precondition"},
		"old GPU": {askEvidence, func(m *machine) {
			m.device(7).GetArchitectureFunc = func() (nvml.DeviceArchitecture, nvml.Return) { return nvml.DEVICE_ARCH_AMPERE, nvml.SUCCESS }
		}, "not-implemented"},
		"no report": {askEvidence, func(m *machine) {
			m.device(7).GetConfComputeGpuAttestationReportFunc = func(*nvml.ConfComputeGpuAttestationReport) nvml.Return { return nvml.ERROR_UNKNOWN }
		}, "unavailable"},
		"size beyond the buffer": {askEvidence, func(m *machine) {
			m.device(7).GetConfComputeGpuAttestationReportFunc = func(r *nvml.ConfComputeGpuAttestationReport) nvml.Return {
				r.AttestationReportSize = uint32(len(r.AttestationReport)) + 1
				return nvml.SUCCESS
			}
		}, "unavailable"},
		"no chain": {askEvidence, func(m *machine) {
			m.device(0).GetConfComputeGpuCertificateFunc = func() (nvml.ConfComputeGpuCertificate, nvml.Return) {
				return nvml.ConfComputeGpuCertificate{}, nvml.SUCCESS
			}
		}, "unavailable"},
	} {
		t.Run(name, func(t *testing.T) {
			m := h100()
			tc.edit(m)
			if a := m.ask(t, tc.question); a.Failure == nil || a.Failure.Class != tc.class || a.Evidence != nil || a.GPUs != nil || a.State != nil {
				t.Errorf("got %+v, %+v", a, a.Failure)
			}
		})
	}
}
