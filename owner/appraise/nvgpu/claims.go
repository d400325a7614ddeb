package nvgpu

import (
	"context"
	"encoding/hex"
	"strconv"
	"strings"

	"github.com/coffer-project/coffer/owner/appraise"
	"github.com/coffer-project/coffer/proto/kbs"
)

// archNames are Trustee's.
var archNames = map[kbs.NVIDIAArch]string{kbs.NVIDIAHopper: "Hopper", kbs.NVIDIABlackwell: "Blackwell", kbs.NVIDIALS10: "LS10"}

// claims lists what the report says (arch, uuid, measurements and config, as Trustee's own verifier names them) and what was found out
// about it (by the names of NVIDIA's attestation service, which Trustee's default policy asks for).
func (d *device) claims(g golden) map[string]any {
	measurements := map[string]any{}
	for index, value := range d.report.measurements {
		measurements[strconv.Itoa(int(index))] = hex.EncodeToString(value)
	}
	c := map[string]any{
		"arch": archNames[d.arch], "uuid": d.uuid, "measurements": measurements, "config": d.settings,
		"hwmodel": d.chain[1].Subject.CommonName, "device_id": d.chain[1].Subject.SerialNumber,
	}
	prefix := "x-nvidia-" + d.model.class + "-"
	report := prefix + "attestation-report-"
	c[prefix+"arch-check"] = true
	c[report+"parsed"], c[report+"signature-verified"], c[report+"nonce-match"] = true, true, true
	c[report+"cert-chain-fwid-match"] = true // a mismatch was refused; switches' reports name no firmware, which NVIDIA calls a match, too
	c[report+"cert-chain"] = certificates(d.ocsp)
	c[prefix+"vbios-version"] = d.settings["vbios_version"]
	if d.model.class == classGPU {
		c[prefix+"driver-version"] = d.settings["driver_version"]
		if pdis, ok := d.settings["switch_pdi"]; ok {
			c[prefix+"switch-pdis"] = pdis
		}
		claimManifest(c, prefix+"driver-rim", g.driver)
	} else {
		if own := d.pdis(opaqueSwitches); len(own) == 1 {
			c[prefix+"pdi"] = own[0]
		}
		c[prefix+"gpu-pdis"] = d.settings["switch_gpu_pdis"]
	}
	bios := prefix + "vbios-rim"
	if d.model.class == classSwitch {
		bios = prefix + "bios-rim"
	}
	claimManifest(c, bios, g.firmware)
	if len(g.contradictory) > 0 {
		c[prefix+"rim-conflicts"] = g.contradictory
	}
	switch {
	case g.match():
		c["measres"], c["secboot"], c["dbgstat"] = "success", true, "disabled"
	case g.complete():
		c["measres"], c["mismatched_measurements"] = "fail", numbers(g.mismatched)
	}
	return c
}

func numbers(indexes []uint8) []int {
	out := []int{}
	for _, index := range indexes {
		out = append(out, int(index))
	}
	return out
}

func certificates(ocsp bool) map[string]any {
	status := map[string]any{"x-nvidia-cert-status": "valid", "x-nvidia-cert-ocsp-status": "unknown"}
	if ocsp {
		status["x-nvidia-cert-ocsp-status"] = "good"
	}
	return status
}

// claimManifest says what became of a manifest. One that cannot be used counts as one that is not there. Its certificates are checked, but
// nobody is asked about them.
func claimManifest(c map[string]any, name string, usable bool) {
	for _, step := range []string{"fetched", "schema-validated", "signature-verified", "version-match", "measurements-available"} {
		c[name+"-"+step] = usable
	}
	if usable {
		c[name+"-cert-chain"] = certificates(false)
	}
}

// pdis returns the devices that a report names in one of its lists, without those that are not there.
func (d *device) pdis(kind uint16) []string {
	var out []string
	list, err := names(d.report.opaque[kind])
	if err != nil {
		return nil
	}
	for _, entry := range list {
		if name, _ := entry.(string); strings.Trim(name, "0") != "" {
			out = append(out, name)
		}
	}
	return out
}

// attestedSwitches names the switches among devices.
func attestedSwitches(devices []*device) map[string]bool {
	found := map[string]bool{}
	for _, d := range devices {
		if d.model.class == classSwitch {
			for _, own := range d.pdis(opaqueSwitches) {
				found[own] = true
			}
		}
	}
	return found
}

// judge gives the verdict. Trustee's default policy is the model, but versions that the owner did not name are not approved by those that
// NVIDIA did, and a GPU that trusts switches is no better than these.
func (v *Verifier) judge(ctx context.Context, d *device, g golden, switches map[string]bool) (appraise.TrustVector, error) {
	vector := appraise.TrustVector{
		Hardware: appraise.HardwareGenuine, Executables: appraise.ExecutablesUnknown, Configuration: appraise.ConfigurationUnknown,
	}
	if d.settings["feature_flag"] == "PPCIE" {
		for _, pdi := range d.pdis(opaqueSwitches) {
			if !switches[pdi] {
				vector.Configuration = appraise.ConfigurationUnsafe
			}
		}
	}
	if !g.match() {
		return vector, nil
	}
	vector.Executables = appraise.ExecutablesApproved
	versions := map[string]any{appraise.RefNVIDIAVBIOS: d.settings["vbios_version"]}
	if d.model.class == classGPU {
		versions[appraise.RefNVIDIADriver] = d.settings["driver_version"]
	}
	approved := appraise.ConfigurationApproved
	for name, version := range versions {
		trusted, known, err := appraise.Trusts(ctx, v.References, name, version)
		switch {
		case err != nil:
			return vector, err
		case !known: // codes are the larger the worse
			approved = max(approved, appraise.ConfigurationSafe)
		case !trusted:
			approved = appraise.ConfigurationUnknown
		}
	}
	if vector.Configuration != appraise.ConfigurationUnsafe {
		vector.Configuration = approved
	}
	return vector, nil
}
