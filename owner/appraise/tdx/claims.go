package tdx

import (
	"context"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"github.com/google/go-tdx-guest/pcs"

	"github.com/coffer-project/coffer/owner/appraise"
	"github.com/coffer-project/coffer/owner/measure/eventlog"
)

// maxLoggedEvents bounds the events in claims: they go into tokens, which travel in HTTP headers.
const maxLoggedEvents = 128

// attributeSEPTVE keeps the host from injecting exceptions on pages that it took away.
// attributeMigratable lets another trust domain take the guest's memory elsewhere.
const (
	attributeSEPTVE     = 28
	attributeMigratable = 29
)

// claims lists what the quote says, in the layout and by the names that Trustee uses.
func claims(q *quote, p *platform, log *eventlog.Log, level *tcb) map[string]any {
	c := map[string]any{
		"quote": map[string]any{"header": headerClaims(q), "body": bodyClaims(&q.body)},
		"td_attributes": map[string]any{
			"debug": q.body.attribute(0), "septve_disable": q.body.attribute(attributeSEPTVE), "protection_keys": q.body.attribute(30),
			"key_locker": q.body.attribute(31), "perfmon": q.body.attribute(63), "migratable": q.body.attribute(attributeMigratable),
		},
		"report_data": hex.EncodeToString(q.body.reportData),
		"init_data":   hex.EncodeToString(q.body.mrConfigID),
		"fmspc":       p.FMSPC,
	}
	if q.version == 5 {
		quote, _ := c["quote"].(map[string]any)
		quote["type"] = hex.EncodeToString(binary.LittleEndian.AppendUint16(nil, q.bodyType))
		quote["size"] = hex.EncodeToString(binary.LittleEndian.AppendUint32(nil, uint32(len(q.signed)-headerSize-6)))
	}
	if log != nil {
		c["uefi_event_logs"] = logClaims(log)
	}
	if level != nil {
		expired := "0"
		if level.expired {
			expired = "1"
		}
		c["tcb_status"], c["tcb_date"], c["advisory_ids"], c["collateral_expiration_status"] = string(level.status), level.date, level.advisories, expired
	}
	return c
}

func headerClaims(q *quote) map[string]any {
	h := q.header
	return map[string]any{
		"version": hex.EncodeToString(h[:2]), "att_key_type": hex.EncodeToString(h[2:4]), "tee_type": hex.EncodeToString(h[4:8]),
		"reserved": hex.EncodeToString(h[8:12]), "vendor_id": hex.EncodeToString(h[12:28]), "user_data": hex.EncodeToString(h[28:48]),
	}
}

func bodyClaims(b *body) map[string]any {
	c := map[string]any{}
	for name, value := range map[string][]byte{
		"tcb_svn": b.teeTCBSVN, "mr_seam": b.mrSeam, "mrsigner_seam": b.mrSignerSeam, "seam_attributes": b.seamAttributes,
		"td_attributes": b.tdAttributes, "xfam": b.xfam, "mr_td": b.mrTD, "mr_config_id": b.mrConfigID, "mr_owner": b.mrOwner,
		"mr_owner_config": b.mrOwnerConfig, "rtmr_0": b.rtmr[0], "rtmr_1": b.rtmr[1], "rtmr_2": b.rtmr[2], "rtmr_3": b.rtmr[3],
		"report_data": b.reportData, "tee_tcb_svn2": b.teeTCBSVN2, "mr_servicetd": b.mrServiceTD,
	} {
		if value != nil {
			c[name] = hex.EncodeToString(value)
		}
	}
	return c
}

// eventNames are the types that a boot by UEFI measures (TCG PC Client Platform Firmware Profile, section 10.4.1).
var eventNames = map[uint32]string{
	0x04: "EV_SEPARATOR", 0x06: "EV_EVENT_TAG", 0x0a: "EV_PLATFORM_CONFIG_FLAGS", 0x0d: "EV_IPL",
	0x80000001: "EV_EFI_VARIABLE_DRIVER_CONFIG", 0x80000002: "EV_EFI_VARIABLE_BOOT", 0x80000003: "EV_EFI_BOOT_SERVICES_APPLICATION",
	0x80000006: "EV_EFI_GPT_EVENT", 0x80000007: "EV_EFI_ACTION", 0x80000008: "EV_EFI_PLATFORM_FIRMWARE_BLOB",
	0x80000009: "EV_EFI_HANDOFF_TABLES", 0x8000000a: "EV_EFI_PLATFORM_FIRMWARE_BLOB2", 0x8000000b: "EV_EFI_HANDOFF_TABLES2",
	0x8000000c: "EV_EFI_VARIABLE_BOOT2", 0x800000e0: "EV_EFI_VARIABLE_AUTHORITY",
}

// logClaims lists the events by their digests. Their data would make tokens too large, and it is the digests that are measured.
func logClaims(log *eventlog.Log) []any {
	var list []any
	for _, e := range log.Events[:min(len(log.Events), maxLoggedEvents)] {
		name, ok := eventNames[e.Type]
		if !ok {
			name = fmt.Sprintf("%#x", e.Type)
		}
		list = append(list, map[string]any{
			"index": e.Register + 1, "type_name": name,
			"digests":              []any{map[string]any{"alg": "SHA-384", "digest": hex.EncodeToString(e.Digest[:])}},
			"digest_matches_event": sha512.Sum384(e.Data) == e.Digest,
		})
	}
	return list
}

// judge holds the quote against the owner's reference values. The rules are those of Trustee's default policy, without its look into the
// event log: the runtime registers hold the same events.
func (v *Verifier) judge(ctx context.Context, q *quote, level *tcb) (appraise.TrustVector, error) {
	vector := appraise.TrustVector{
		Executables: appraise.ExecutablesUnknown, Hardware: hardware(level), Configuration: appraise.ConfigurationUnknown,
	}
	approved := true
	for name, got := range map[string][]byte{
		appraise.RefTDXMRTD: q.body.mrTD, appraise.RefTDXRTMR0: q.body.rtmr[0], appraise.RefTDXRTMR1: q.body.rtmr[1], appraise.RefTDXRTMR2: q.body.rtmr[2],
	} {
		trusted, known, err := appraise.Trusts(ctx, v.References, name, hex.EncodeToString(got))
		if err != nil {
			return vector, err
		}
		// RTMR 0 holds the virtual machine's shape; owners who do not care name no value for it.
		if !trusted && (known || name != appraise.RefTDXRTMR0) {
			approved = false
		}
	}
	if approved {
		vector.Executables = appraise.ExecutablesApproved
	}
	trusted, known, err := appraise.Trusts(ctx, v.References, appraise.RefTDXXFAM, hex.EncodeToString(q.body.xfam))
	if err != nil {
		return vector, err
	}
	switch {
	case q.body.attribute(attributeMigratable):
		vector.Configuration = appraise.ConfigurationUnsafe
	case !q.body.attribute(attributeSEPTVE): // a guest may have seen to it by itself; the quote does not tell
	case trusted:
		vector.Configuration = appraise.ConfigurationApproved
	case !known:
		vector.Configuration = appraise.ConfigurationSafe
	}
	return vector, nil
}

// hardware judges the platform by what Intel says of it today.
func hardware(level *tcb) int8 {
	switch {
	case level == nil || level.expired:
		return appraise.HardwareUnknown
	case level.status == pcs.TcbComponentStatusUpToDate:
		return appraise.HardwareGenuine
	case level.status == pcs.TcbComponentStatusRevoked:
		return appraise.HardwareUnacceptable
	}
	return appraise.HardwareOutdated
}
