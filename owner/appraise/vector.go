package appraise

// Status is the verdict on one part of the guest, in the words of the attestation result (EAR).
type Status string

// The verdicts. None means that nothing was proved, not even something bad.
const (
	None            Status = "none"
	Affirming       Status = "affirming"
	Warning         Status = "warning"
	Contraindicated Status = "contraindicated"
)

// The codes of AR4SI (draft-ietf-rats-ar4si, section 2.3) that verifiers give. 0 makes no claim.
const (
	// HardwareGenuine: hardware and firmware are genuine and of versions that the owner accepts.
	HardwareGenuine int8 = 2
	// HardwareOutdated: hardware and firmware are genuine, but there are known faults in that version.
	HardwareOutdated int8 = 32
	// HardwareUnacceptable: the hardware is genuine, but its firmware must not be relied on.
	HardwareUnacceptable int8 = 96
	// HardwareUnknown: the owner has named no such hardware or firmware as acceptable.
	HardwareUnknown int8 = 97

	// ExecutablesApproved: what was loaded up to the end of boot is one of the sets that the owner approved.
	ExecutablesApproved int8 = 3
	// ExecutablesUnknown: what was loaded is not what the owner approved.
	ExecutablesUnknown int8 = 33

	// ConfigurationApproved: every security option has the value that the owner asked for.
	ConfigurationApproved int8 = 2
	// ConfigurationSafe: no option is known to be unsafe; the owner did not ask for particular values.
	ConfigurationSafe int8 = 3
	// ConfigurationUnknown: security options are not known to the verifier.
	ConfigurationUnknown int8 = 36
	// ConfigurationUnsafe: an option opens the guest to its host, such as debugging.
	ConfigurationUnsafe int8 = 96
)

// TrustVector details the verdict with the codes of AR4SI; 0 makes no claim.
type TrustVector struct {
	InstanceIdentity int8 `json:"instance-identity"`
	Configuration    int8 `json:"configuration"`
	Executables      int8 `json:"executables"`
	FileSystem       int8 `json:"file-system"`
	Hardware         int8 `json:"hardware"`
	RuntimeOpaque    int8 `json:"runtime-opaque"`
	StorageOpaque    int8 `json:"storage-opaque"`
	SourcedData      int8 `json:"sourced-data"`
}

// Status is the verdict of the worst entry. A vector that claims nothing is None.
func (v TrustVector) Status() Status {
	worst := None
	rank := map[Status]int{None: 0, Affirming: 1, Warning: 2, Contraindicated: 3}
	for _, code := range []int8{
		v.InstanceIdentity, v.Configuration, v.Executables, v.FileSystem,
		v.Hardware, v.RuntimeOpaque, v.StorageOpaque, v.SourcedData,
	} {
		if s := tier(code); rank[s] > rank[worst] {
			worst = s
		}
	}
	return worst
}

// tier is the class of a code (AR4SI, section 2.3.1): those far from 0 are worse. An error of the verifier (-1, 1) proves nothing, which must not pass for
// "no claim made", so it counts as Contraindicated.
func tier(code int8) Status {
	switch {
	case code == 0:
		return None
	case code >= 2 && code < 32, code <= -2 && code >= -32:
		return Affirming
	case code >= 32 && code < 96, code <= -33 && code >= -96:
		return Warning
	}
	return Contraindicated
}
