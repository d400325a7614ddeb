//go:build nvml

package evidence

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxh100"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/server"

	"github.com/coffer-project/coffer/guestpull/attest/nvgpu"
	"github.com/coffer-project/coffer/guestpull/attest/nvgpu/helper"
	nvmldriver "github.com/coffer-project/coffer/guestpull/attest/nvgpu/nvml"
	"github.com/coffer-project/coffer/owner/appraise/nvgpu/nvgputest"
	"github.com/coffer-project/coffer/proto/kbs"
)

// driver is NVIDIA's library in its own mock, over forged GPUs.
func driver(t *testing.T, gpus []*nvgputest.Device) *server.Server {
	t.Helper()
	s := dgxh100.New()
	s.Devices = s.Devices[:len(gpus)]
	s.SystemGetConfComputeStateFunc = func() (nvml.ConfComputeSystemState, nvml.Return) {
		return nvml.ConfComputeSystemState{Environment: nvml.CC_SYSTEM_ENVIRONMENT_PROD, CcFeature: nvml.CC_SYSTEM_FEATURE_ENABLED}, nvml.SUCCESS
	}
	s.SystemGetConfComputeSettingsFunc = func() (nvml.SystemConfComputeSettings, nvml.Return) {
		return nvml.SystemConfComputeSettings{}, nvml.SUCCESS
	}
	s.SystemGetConfComputeGpusReadyStateFunc = func() (uint32, nvml.Return) { return 0, nvml.SUCCESS }
	for i, forged := range gpus {
		d, _ := s.Devices[i].(*server.Device)
		d.GetPciInfoFunc = func() (nvml.PciInfo, nvml.Return) { return nvml.PciInfo{Bus: uint32(i)}, nvml.SUCCESS }
		d.GetConfComputeGpuCertificateFunc = func() (nvml.ConfComputeGpuCertificate, nvml.Return) {
			var c nvml.ConfComputeGpuCertificate
			c.AttestationCertChainSize = uint32(copy(c.AttestationCertChain[:], forged.Chain()))
			return c, nvml.SUCCESS
		}
		d.GetConfComputeGpuAttestationReportFunc = func(r *nvml.ConfComputeGpuAttestationReport) nvml.Return {
			report, err := forged.Report(r.Nonce[:])
			if err != nil {
				return nvml.ERROR_UNKNOWN
			}
			r.AttestationReportSize = uint32(copy(r.AttestationReport[:], report))
			return nvml.SUCCESS
		}
	}
	return s
}

// asked is the guest's side of the program that asks the library, without a process between them.
type asked struct{ library *server.Server }

func (asked) Device() string { return kbs.DeviceNVIDIA }

func (a asked) Evidence(_ context.Context, reportData []byte) (json.RawMessage, error) {
	question, err := json.Marshal(nvgpu.Question{Version: nvgpu.Version, Op: nvgpu.OpEvidence, Nonce: reportData[:kbs.NVIDIANonce]})
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	helper.Main(bytes.NewReader(append(question, '\n')), &out, func() (helper.Library, func() error, error) { return nvmldriver.OpenWith(a.library) })
	var answer nvgpu.Answer
	if err := json.Unmarshal(out.Bytes(), &answer); err != nil {
		return nil, err
	}
	if answer.Failure != nil {
		return nil, errors.New(answer.Failure.Message)
	}
	return json.Marshal(answer.Evidence)
}

// From NVIDIA's library to the key: what the driver gives for eight GPUs is what the broker believes.
func TestEvidenceOfNVIDIAsLibrary(t *testing.T) {
	s := newGPUSite(t)
	var forged []*nvgputest.Device
	for i := range 8 {
		forged = append(forged, s.device(t, kbs.NVIDIAHopper, fmt.Sprintf("GPU-%d", i)))
	}
	const eight = "kbs:///gpu/hopper/8-model"
	s.Put(t, eight, []byte(secret))
	client := s.guest(t, asked{driver(t, forged)})
	if err := client.Attest(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, err := client.Resource(t.Context(), eight); err != nil || string(got) != secret {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
}
