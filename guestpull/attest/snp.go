package attest

import (
	"encoding/binary"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/google/go-configfs-tsm/report"
	"github.com/google/uuid"

	"github.com/coffer-project/coffer/proto/kbs"
)

// The kinds of entries in a certificate table (GHCB specification 2.0x, section 4.1.8.1). The intermediate of VLEK has the name of that of VCEK.
var certificateKinds = map[uuid.UUID]kbs.SNPCertType{
	uuid.MustParse("c0b406a4-a803-4952-9743-3fb6014cd0ae"): kbs.SNPARK,
	uuid.MustParse("4ab7b379-bbac-4fe4-a02f-05aef327c782"): kbs.SNPASK,
	uuid.MustParse("63da758d-e664-4564-adc5-f4b93be8accd"): kbs.SNPVCEK,
	uuid.MustParse("a8074bc2-a25a-483e-aae6-39c045a0b8a1"): kbs.SNPVLEK,
	uuid.MustParse("92f81bc3-5811-4d3d-97ff-d19f88dc67ea"): kbs.SNPCRL,
}

// tableEntry is the size of an entry in bytes: a GUID, and the offset and length of what it names, little-endian.
const tableEntry = 16 + 4 + 4

func snpEvidence(response *report.Response) (*kbs.SNPEvidence, error) {
	parsed, err := kbs.ParseSNPReport(response.OutBlob)
	if err != nil {
		return nil, err
	}
	certificates, err := parseCertificates(response.AuxBlob)
	if err != nil {
		return nil, fmt.Errorf("certificates that the host gives with SNP reports: %w", err)
	}
	return &kbs.SNPEvidence{Report: *parsed, Certificates: certificates}, nil
}

// parseCertificates reads a certificate table, which the host wrote. Entries that no verifier would use are left out. Damage is InvalidArgument.
func parseCertificates(table []byte) ([]kbs.SNPCertificate, error) {
	bad := func(reason string) ([]kbs.SNPCertificate, error) {
		return nil, fmt.Errorf("table %s: %w", reason, errdefs.ErrInvalidArgument)
	}
	var found []kbs.SNPCertificate
	for rest, n := table, 0; len(rest) > 0; rest, n = rest[tableEntry:], n+1 {
		if len(rest) < tableEntry {
			return bad("ends without a last entry")
		}
		if [tableEntry]byte(rest) == [tableEntry]byte{} {
			return found, nil
		}
		if n == kbs.MaxCertificates {
			return bad(fmt.Sprintf("has more than %d entries", kbs.MaxCertificates))
		}
		offset, size := uint64(binary.LittleEndian.Uint32(rest[16:])), uint64(binary.LittleEndian.Uint32(rest[20:]))
		if offset+size > uint64(len(table)) {
			return bad("names a certificate outside of itself")
		}
		kind, known := certificateKinds[uuid.UUID(rest[:16])]
		if !known || size == 0 {
			continue
		}
		if size > kbs.MaxCertificate {
			return bad(fmt.Sprintf("has a certificate of more than %d bytes", kbs.MaxCertificate))
		}
		found = append(found, kbs.SNPCertificate{Type: kind, Data: table[offset : offset+size : offset+size]})
	}
	if len(table) > 0 {
		return bad("ends without a last entry")
	}
	return nil, nil
}
