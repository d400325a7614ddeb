package snp

import (
	"context"
	"encoding/hex"
	"fmt"

	"github.com/google/go-sev-guest/abi"

	"github.com/coffer-project/coffer/owner/appraise"
	"github.com/coffer-project/coffer/proto/kbs"
)

// Bits of PLATFORM_INFO (SEV Secure Nested Paging Firmware ABI, table 24).
const (
	platformSMT        = 1 << 0
	platformTSME       = 1 << 1
	platformAliasCheck = 1 << 5
)

// claims lists what the report says. The names down to chip_id are Trustee's.
func claims(report *kbs.SNPReport, policy abi.SnpPolicy, key *endorsementKey) map[string]any {
	c := map[string]any{
		"policy_abi_major":        policy.ABIMajor,
		"policy_abi_minor":        policy.ABIMinor,
		"policy_smt_allowed":      policy.SMT,
		"policy_migrate_ma":       policy.MigrateMA,
		"policy_debug_allowed":    policy.Debug,
		"policy_single_socket":    policy.SingleSocket,
		"reported_tcb_bootloader": report.ReportedTCB.Bootloader,
		"reported_tcb_tee":        report.ReportedTCB.TEE,
		"reported_tcb_snp":        report.ReportedTCB.SNP,
		"reported_tcb_microcode":  report.ReportedTCB.Microcode,
		"platform_tsme_enabled":   report.PlatformInfo&platformTSME != 0,
		"platform_smt_enabled":    report.PlatformInfo&platformSMT != 0,
		"measurement":             hex.EncodeToString(report.Measurement),
		"report_data":             hex.EncodeToString(report.ReportData),
		"init_data":               hex.EncodeToString(report.HostData),
		"chip_id":                 hex.EncodeToString(report.ChipID),

		"platform_alias_check_complete": report.PlatformInfo&platformAliasCheck != 0,
		"product":                       key.product,
		"signing_key":                   key.signer.String(),
		"guest_svn":                     report.GuestSVN,
		"family_id":                     hex.EncodeToString(report.FamilyID),
		"image_id":                      hex.EncodeToString(report.ImageID),
		"id_key_digest":                 hex.EncodeToString(report.IDKeyDigest),
		"author_key_digest":             hex.EncodeToString(report.AuthorKeyDigest),
	}
	if report.ReportedTCB.FMC != nil {
		c["reported_tcb_fmc"] = *report.ReportedTCB.FMC
	}
	if key.csp != "" {
		c["csp_id"] = key.csp
	}
	return c
}

// judge holds the report against the owner's reference values, by the rules of Trustee's default policy.
func (v *Verifier) judge(ctx context.Context, report *kbs.SNPReport, policy abi.SnpPolicy) (appraise.TrustVector, error) {
	vector := appraise.TrustVector{
		Executables: appraise.ExecutablesUnknown, Hardware: appraise.HardwareUnknown, Configuration: appraise.ConfigurationSafe,
	}
	match := func(expected map[string]any) (bool, error) {
		for name, got := range expected {
			trusted, _, err := appraise.Trusts(ctx, v.References, name, got)
			if err != nil || !trusted {
				return false, err
			}
		}
		return true, nil
	}
	ok, err := match(map[string]any{appraise.RefSNPMeasurement: hex.EncodeToString(report.Measurement)})
	if err != nil {
		return vector, err
	}
	if ok {
		vector.Executables = appraise.ExecutablesApproved
	}
	firmware := map[string]any{
		appraise.RefSNPBootloader: report.ReportedTCB.Bootloader,
		appraise.RefSNPMicrocode:  report.ReportedTCB.Microcode,
		appraise.RefSNPFirmware:   report.ReportedTCB.SNP,
		appraise.RefSNPTEE:        report.ReportedTCB.TEE,
	}
	if fmc := report.ReportedTCB.FMC; fmc != nil {
		if want, err := v.References.Reference(ctx, appraise.RefSNPFMC); err != nil {
			return vector, fmt.Errorf("read reference value %s: %w", appraise.RefSNPFMC, err)
		} else if want != nil { // owners who use Trustee's names have none for it
			firmware[appraise.RefSNPFMC] = *fmc
		}
	}
	if ok, err = match(firmware); err != nil {
		return vector, err
	}
	if ok {
		vector.Hardware = appraise.HardwareGenuine
		// Firmware that is not committed can be rolled back by the host to a version below the one that was reported.
		if !sameTCB(report.CommittedTCB, report.CurrentTCB) {
			vector.Hardware = appraise.HardwareOutdated
		}
	}
	ok, err = match(map[string]any{
		appraise.RefSNPSMTEnabled:   report.PlatformInfo&platformSMT != 0,
		appraise.RefSNPTSMEEnabled:  report.PlatformInfo&platformTSME != 0,
		appraise.RefSNPABIMajor:     policy.ABIMajor,
		appraise.RefSNPABIMinor:     policy.ABIMinor,
		appraise.RefSNPSingleSocket: policy.SingleSocket,
		appraise.RefSNPSMTAllowed:   policy.SMT,
	})
	if err != nil {
		return vector, err
	}
	switch {
	case policy.MigrateMA: // a migration agent may take the guest's memory elsewhere
		vector.Configuration = appraise.ConfigurationUnsafe
	case ok:
		vector.Configuration = appraise.ConfigurationApproved
	}
	return vector, nil
}
