package kbs

import (
	"encoding/binary"
	"fmt"

	"github.com/containerd/errdefs"
)

// SNPReportSize is the size of an SNP attestation report in bytes (SEV Secure Nested Paging Firmware ABI, ATTESTATION_REPORT).
const SNPReportSize = 0x4a0

// SNPReport is an SNP attestation report as brokers expect it in JSON: member by member, not as the bytes that the processor signed.
// Raw and ParseSNPReport convert; the bytes are restored exactly where the processor left reserved fields zero, as it must.
type SNPReport struct {
	Version         uint32       `json:"version"`
	GuestSVN        uint32       `json:"guest_svn"`
	Policy          uint64       `json:"policy"`
	FamilyID        Octets       `json:"family_id"`
	ImageID         Octets       `json:"image_id"`
	VMPL            uint32       `json:"vmpl"`
	SigAlgo         uint32       `json:"sig_algo"`
	CurrentTCB      SNPTCB       `json:"current_tcb"`
	PlatformInfo    uint64       `json:"plat_info"`
	KeyInfo         uint32       `json:"key_info"`
	ReportData      Octets       `json:"report_data"`
	Measurement     Octets       `json:"measurement"`
	HostData        Octets       `json:"host_data"`
	IDKeyDigest     Octets       `json:"id_key_digest"`
	AuthorKeyDigest Octets       `json:"author_key_digest"`
	ReportID        Octets       `json:"report_id"`
	ReportIDMA      Octets       `json:"report_id_ma"`
	ReportedTCB     SNPTCB       `json:"reported_tcb"`
	CPUFamily       *uint8       `json:"cpuid_fam_id"` // nil in version 2, like the next two
	CPUModel        *uint8       `json:"cpuid_mod_id"`
	CPUStepping     *uint8       `json:"cpuid_step"`
	ChipID          Octets       `json:"chip_id"`
	CommittedTCB    SNPTCB       `json:"committed_tcb"`
	Current         SNPVersion   `json:"current"`
	Committed       SNPVersion   `json:"committed"`
	LaunchTCB       SNPTCB       `json:"launch_tcb"`
	LaunchMit       *uint64      `json:"launch_mit_vector,omitempty"` // from version 5 on, like the next one
	CurrentMit      *uint64      `json:"current_mit_vector,omitempty"`
	Signature       SNPSignature `json:"signature"`
}

// SNPTCB is a TCB version: the security patch levels of the firmware's parts.
type SNPTCB struct {
	FMC        *uint8 `json:"fmc"` // nil before Turin
	Bootloader uint8  `json:"bootloader"`
	TEE        uint8  `json:"tee"`
	SNP        uint8  `json:"snp"`
	Microcode  uint8  `json:"microcode"`
}

// SNPVersion is a firmware version.
type SNPVersion struct {
	Major uint8 `json:"major"`
	Minor uint8 `json:"minor"`
	Build uint8 `json:"build"`
}

// SNPSignature is an ECDSA signature, R and S little-endian in 72 bytes each.
type SNPSignature struct {
	R Octets `json:"r"`
	S Octets `json:"s"`
}

// The parts of the report whose place depends on the processor or on the version.
const (
	snpChipID   = 0x1a0
	snpSigStart = 0x2a0
	snpSigPart  = 72
)

// ParseSNPReport reads a report's bytes. It does not judge them: a report of an unknown version is read as one of version 5. Bytes that
// are no report or that the JSON form cannot carry (reserved fields in use, an unknown processor) are InvalidArgument.
func ParseSNPReport(raw []byte) (*SNPReport, error) {
	if len(raw) != SNPReportSize {
		return nil, fmt.Errorf("SNP report has %d bytes, not %d: %w", len(raw), SNPReportSize, errdefs.ErrInvalidArgument)
	}
	r := &SNPReport{Version: binary.LittleEndian.Uint32(raw)}
	if r.Version >= 3 {
		r.CPUFamily, r.CPUModel, r.CPUStepping = new(uint8), new(uint8), new(uint8)
	}
	if r.Version >= 5 {
		r.LaunchMit, r.CurrentMit = new(uint64), new(uint64)
	}
	copied := append([]byte(nil), raw...)
	turin, err := turinLayout(r.Version, raw[0x188], raw[0x189], raw[snpChipID:snpChipID+64])
	if err != nil {
		return nil, err
	}
	r.walk(snpReader{copied}, turin)
	restored, err := r.Raw()
	if err != nil {
		return nil, err
	}
	if string(restored) != string(raw) {
		return nil, fmt.Errorf("SNP report has reserved fields that are not zero: %w", errdefs.ErrInvalidArgument)
	}
	return r, nil
}

// Raw returns the bytes that the processor signed, and the signature. Fields of a wrong size are InvalidArgument.
func (r *SNPReport) Raw() ([]byte, error) {
	var family, model uint8
	if r.Version >= 3 {
		if r.CPUFamily == nil || r.CPUModel == nil || r.CPUStepping == nil {
			return nil, fmt.Errorf("SNP report of version %d names no processor: %w", r.Version, errdefs.ErrInvalidArgument)
		}
		family, model = *r.CPUFamily, *r.CPUModel
	}
	turin, err := turinLayout(r.Version, family, model, r.ChipID)
	if err != nil {
		return nil, err
	}
	w := &snpWriter{raw: make([]byte, SNPReportSize)}
	r.walk(w, turin)
	if w.err != nil {
		return nil, w.err
	}
	return w.raw, nil
}

// turinLayout tells where the parts of TCB versions are. Version 2 does not name the processor; there, only Turin's chip IDs are short.
func turinLayout(version uint32, family, model uint8, chipID []byte) (bool, error) {
	if version < 3 {
		return len(chipID) == 64 && allZero(chipID[8:]) && !allZero(chipID[:8]), nil
	}
	switch {
	case family == 0x19 && (model <= 0x1f || model >= 0xa0 && model <= 0xaf): // Milan, Genoa and its kin
		return false, nil
	case family == 0x1a: // Turin and later
		return true, nil
	}
	return false, fmt.Errorf("SNP report of an unknown processor, family %#x model %#x: %w", family, model, errdefs.ErrInvalidArgument)
}

func allZero(b []byte) bool {
	for _, v := range b {
		if v != 0 {
			return false
		}
	}
	return true
}

// snpCodec reads or writes one field at its place in the report.
type snpCodec interface {
	u8(at int, v *uint8)
	u32(at int, v *uint32)
	u64(at int, v *uint64)
	octets(at, size int, name string, v *Octets)
	fmc(at int, v **uint8)
}

// walk hands every field to c.
func (r *SNPReport) walk(c snpCodec, turin bool) {
	c.u32(0x00, &r.Version)
	c.u32(0x04, &r.GuestSVN)
	c.u64(0x08, &r.Policy)
	c.octets(0x10, 16, "family_id", &r.FamilyID)
	c.octets(0x20, 16, "image_id", &r.ImageID)
	c.u32(0x30, &r.VMPL)
	c.u32(0x34, &r.SigAlgo)
	r.CurrentTCB.walk(c, 0x38, turin)
	c.u64(0x40, &r.PlatformInfo)
	c.u32(0x48, &r.KeyInfo)
	c.octets(0x50, 64, "report_data", &r.ReportData)
	c.octets(0x90, 48, "measurement", &r.Measurement)
	c.octets(0xc0, 32, "host_data", &r.HostData)
	c.octets(0xe0, 48, "id_key_digest", &r.IDKeyDigest)
	c.octets(0x110, 48, "author_key_digest", &r.AuthorKeyDigest)
	c.octets(0x140, 32, "report_id", &r.ReportID)
	c.octets(0x160, 32, "report_id_ma", &r.ReportIDMA)
	r.ReportedTCB.walk(c, 0x180, turin)
	if r.Version >= 3 {
		c.u8(0x188, r.CPUFamily)
		c.u8(0x189, r.CPUModel)
		c.u8(0x18a, r.CPUStepping)
	}
	c.octets(snpChipID, 64, "chip_id", &r.ChipID)
	r.CommittedTCB.walk(c, 0x1e0, turin)
	r.Current.walk(c, 0x1e8)
	r.Committed.walk(c, 0x1ec)
	r.LaunchTCB.walk(c, 0x1f0, turin)
	if r.LaunchMit != nil && r.CurrentMit != nil {
		c.u64(0x1f8, r.LaunchMit)
		c.u64(0x200, r.CurrentMit)
	}
	c.octets(snpSigStart, snpSigPart, "signature.r", &r.Signature.R)
	c.octets(snpSigStart+snpSigPart, snpSigPart, "signature.s", &r.Signature.S)
}

func (t *SNPTCB) walk(c snpCodec, at int, turin bool) {
	bootloader, tee, snp := at, at+1, at+6
	if turin {
		c.fmc(at, &t.FMC)
		bootloader, tee, snp = at+1, at+2, at+3
	}
	c.u8(bootloader, &t.Bootloader)
	c.u8(tee, &t.TEE)
	c.u8(snp, &t.SNP)
	c.u8(at+7, &t.Microcode)
}

func (v *SNPVersion) walk(c snpCodec, at int) {
	c.u8(at, &v.Build)
	c.u8(at+1, &v.Minor)
	c.u8(at+2, &v.Major)
}

type snpReader struct{ raw []byte }

func (r snpReader) u8(at int, v *uint8)   { *v = r.raw[at] }
func (r snpReader) u32(at int, v *uint32) { *v = binary.LittleEndian.Uint32(r.raw[at:]) }
func (r snpReader) u64(at int, v *uint64) { *v = binary.LittleEndian.Uint64(r.raw[at:]) }
func (r snpReader) fmc(at int, v **uint8) { *v = &r.raw[at] }
func (r snpReader) octets(at, size int, _ string, v *Octets) {
	*v = r.raw[at : at+size : at+size]
}

type snpWriter struct {
	raw []byte
	err error
}

func (w *snpWriter) u8(at int, v *uint8)   { w.raw[at] = *v }
func (w *snpWriter) u32(at int, v *uint32) { binary.LittleEndian.PutUint32(w.raw[at:], *v) }
func (w *snpWriter) u64(at int, v *uint64) { binary.LittleEndian.PutUint64(w.raw[at:], *v) }

func (w *snpWriter) fmc(at int, v **uint8) {
	if *v == nil {
		w.err = fmt.Errorf("SNP report of a processor with an FMC gives no fmc in its TCB versions: %w", errdefs.ErrInvalidArgument)
		return
	}
	w.raw[at] = **v
}

func (w *snpWriter) octets(at, size int, name string, v *Octets) {
	if len(*v) != size {
		w.err = fmt.Errorf("SNP report has %d bytes in %s, not %d: %w", len(*v), name, size, errdefs.ErrInvalidArgument)
		return
	}
	copy(w.raw[at:], *v)
}
