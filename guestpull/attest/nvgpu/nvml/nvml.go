//go:build nvml

package nvml

import (
	"bytes"
	"fmt"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/guestpull/attest/nvgpu"
	"github.com/coffer-project/coffer/guestpull/attest/nvgpu/helper"
	"github.com/coffer-project/coffer/proto/kbs"
)

// library implements helper.Library.
type library struct{ nvml nvml.Interface }

// Open loads the library, from the loader's path where path is empty, and connects to the driver. The second result ends that.
func Open(path string) (helper.Library, func() error, error) {
	var options []nvml.LibraryOption
	if path != "" {
		options = append(options, nvml.WithLibraryPath(path))
	}
	return OpenWith(nvml.New(options...))
}

// OpenWith is Open with another library, for tests.
func OpenWith(n nvml.Interface) (helper.Library, func() error, error) {
	if err := check("connect to the NVIDIA driver", n.Init()); err != nil {
		return nil, nil, err
	}
	return &library{n}, func() error { return check("leave the NVIDIA driver", n.Shutdown()) }, nil
}

// check gives an answer of the library its class.
func check(what string, code nvml.Return) error {
	var class error = errdefs.ErrUnavailable
	switch code {
	case nvml.SUCCESS:
		return nil
	case nvml.ERROR_LIBRARY_NOT_FOUND, nvml.ERROR_DRIVER_NOT_LOADED, nvml.ERROR_LIB_RM_VERSION_MISMATCH, nvml.ERROR_GPU_NOT_FOUND:
		class = errdefs.ErrFailedPrecondition
	case nvml.ERROR_NO_PERMISSION:
		class = errdefs.ErrPermissionDenied
	case nvml.ERROR_NOT_SUPPORTED, nvml.ERROR_FUNCTION_NOT_FOUND:
		class = errdefs.ErrNotImplemented
	}
	// The library's own text needs the library; its number does not.
	return fmt.Errorf("%s: NVML answers %d: %w", what, int32(code), class)
}

// needs refuses what this version of the driver does not have.
func (l *library) needs(what string, symbols ...string) error {
	for _, symbol := range symbols {
		if err := l.nvml.Extensions().LookupSymbol(symbol); err != nil {
			return fmt.Errorf("%s: the NVIDIA driver is too old, it lacks %s: %w", what, symbol, errdefs.ErrNotImplemented)
		}
	}
	return nil
}

// GPUs implements helper.Library.
func (l *library) GPUs() ([]nvgpu.GPU, error) {
	count, code := l.nvml.DeviceGetCount()
	if err := check("count GPUs", code); err != nil {
		return nil, err
	}
	if count < 0 || count > kbs.MaxNVIDIADevices {
		return nil, fmt.Errorf("driver has %d GPUs, more than %d: %w", count, kbs.MaxNVIDIADevices, errdefs.ErrFailedPrecondition)
	}
	gpus := []nvgpu.GPU{}
	for i := range count {
		device, code := l.nvml.DeviceGetHandleByIndex(i)
		if err := check(fmt.Sprintf("open GPU %d", i), code); err != nil {
			return nil, err
		}
		g, err := describe(i, device)
		if err != nil {
			return nil, fmt.Errorf("GPU %d: %w", i, err)
		}
		gpus = append(gpus, g)
	}
	return gpus, nil
}

var generations = map[nvml.DeviceArchitecture]kbs.NVIDIAArch{nvml.DEVICE_ARCH_HOPPER: kbs.NVIDIAHopper, nvml.DEVICE_ARCH_BLACKWELL: kbs.NVIDIABlackwell}

func describe(index int, device nvml.Device) (nvgpu.GPU, error) {
	g := nvgpu.GPU{Index: index}
	uuid, code := device.GetUUID()
	if err := check("read its name", code); err != nil {
		return g, err
	}
	name, code := device.GetName()
	if err := check("read its product", code); err != nil {
		return g, err
	}
	generation, code := device.GetArchitecture()
	if err := check("read its generation", code); err != nil {
		return g, err
	}
	pci, code := device.GetPciInfo()
	if err := check("read its address", code); err != nil {
		return g, err
	}
	g.UUID, g.Name, g.Arch = uuid, name, generations[generation]
	g.Address = fmt.Sprintf("%04x:%02x:%02x.0", pci.Domain, pci.Bus, pci.Device)
	return g, nil
}

// State implements helper.Library. Drivers that do not know the newer question (settings) are asked the older one (state).
func (l *library) State() (nvgpu.State, error) {
	const what = "ask for confidential computing"
	state := nvgpu.State{Mode: nvgpu.ModeOff, MultiGPU: nvgpu.MultiGPUNone}
	if err := l.needs(what, "nvmlSystemGetConfComputeState", "nvmlSystemGetConfComputeGpusReadyState"); err != nil {
		return state, err
	}
	var code nvml.Return
	if state.Driver, code = l.nvml.SystemGetDriverVersion(); code != nvml.SUCCESS {
		return state, check("read the driver's version", code)
	}
	basic, code := l.nvml.SystemGetConfComputeState()
	if err := check(what, code); err != nil {
		return state, err
	}
	if l.nvml.Extensions().LookupSymbol("nvmlSystemGetConfComputeSettings") == nil {
		settings, code := l.nvml.SystemGetConfComputeSettings()
		if err := check(what, code); err != nil {
			return state, err
		}
		multi := map[uint32]nvgpu.Feature{
			nvml.CC_SYSTEM_MULTIGPU_NONE: nvgpu.MultiGPUNone, nvml.CC_SYSTEM_MULTIGPU_PROTECTED_PCIE: nvgpu.MultiGPUProtectedPCIe, nvml.CC_SYSTEM_MULTIGPU_NVLE: nvgpu.MultiGPUNVLink,
		}
		var known bool
		if state.MultiGPU, known = multi[settings.MultiGpuMode]; !known {
			return state, fmt.Errorf("driver knows a mode of several GPUs (%d) that this program does not: %w", settings.MultiGpuMode, errdefs.ErrNotImplemented)
		}
	}
	state.Production = basic.Environment == nvml.CC_SYSTEM_ENVIRONMENT_PROD
	switch {
	case basic.DevToolsMode != nvml.CC_SYSTEM_DEVTOOLS_MODE_OFF:
		state.Mode = nvgpu.ModeDevTools
	case basic.CcFeature != nvml.CC_SYSTEM_FEATURE_DISABLED:
		state.Mode = nvgpu.ModeOn
	}
	ready, code := l.nvml.SystemGetConfComputeGpusReadyState()
	if err := check("read the GPUs' ready state", code); err != nil {
		return state, err
	}
	state.Ready = ready == nvml.CC_ACCEPTING_CLIENT_REQUESTS_TRUE
	return state, nil
}

// Report implements helper.Library.
func (l *library) Report(g nvgpu.GPU, nonce [kbs.NVIDIANonce]byte) (report, chain []byte, err error) {
	if err := l.needs("collect evidence", "nvmlDeviceGetConfComputeGpuCertificate", "nvmlDeviceGetConfComputeGpuAttestationReport"); err != nil {
		return nil, nil, err
	}
	device, code := l.nvml.DeviceGetHandleByIndex(g.Index)
	if err := check("open it", code); err != nil {
		return nil, nil, err
	}
	if uuid, code := device.GetUUID(); code != nvml.SUCCESS || uuid != g.UUID {
		return nil, nil, fmt.Errorf("it is another one by now: %w", errdefs.ErrUnavailable)
	}
	certificate, code := device.GetConfComputeGpuCertificate()
	if err := check("read its certificates", code); err != nil {
		return nil, nil, err
	}
	request := nvml.ConfComputeGpuAttestationReport{Nonce: nonce}
	if err := check("have it report", device.GetConfComputeGpuAttestationReport(&request)); err != nil {
		return nil, nil, err
	}
	if report, err = filled("report", request.AttestationReport[:], request.AttestationReportSize); err != nil {
		return nil, nil, err
	}
	chain, err = filled("certificate chain", certificate.AttestationCertChain[:], certificate.AttestationCertChainSize)
	return report, chain, err
}

// filled returns the part of a buffer that the driver says it filled.
func filled(what string, buffer []byte, size uint32) ([]byte, error) {
	if size == 0 || uint64(size) > uint64(len(buffer)) {
		return nil, fmt.Errorf("driver gives a %s of %d bytes, not of 1 to %d: %w", what, size, len(buffer), errdefs.ErrUnavailable)
	}
	return bytes.Clone(buffer[:size]), nil
}

// SetReady implements helper.Library.
func (l *library) SetReady(ready bool) error {
	if err := l.needs("set the GPUs' ready state", "nvmlSystemSetConfComputeGpusReadyState"); err != nil {
		return err
	}
	value := uint32(nvml.CC_ACCEPTING_CLIENT_REQUESTS_FALSE)
	if ready {
		value = nvml.CC_ACCEPTING_CLIENT_REQUESTS_TRUE
	}
	return check("set the GPUs' ready state", l.nvml.SystemSetConfComputeGpusReadyState(value))
}
