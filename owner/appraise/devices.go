package appraise

import "context"

// DeviceVerifier appraises the evidence of the devices of one kind, for example of all of a guest's GPUs. Calls may be concurrent.
type DeviceVerifier interface {
	// Device is the kind's name in additional evidence and in tokens, for example nvidia.
	Device() string
	// VerifyDevices returns an appraisal for each device, in their order. What holds for Verifier.Verify holds here too; the report data
	// is kbs.DeviceReportData.
	VerifyDevices(ctx context.Context, e Evidence) ([]DeviceResult, error)
}

// DeviceResult is the appraisal of one device.
type DeviceResult struct {
	// Class names the submodules of the token, which are counted within it, and selects the attestation policy: gpu, switch.
	Class string
	Result
}
