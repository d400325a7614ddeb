package kbs

import (
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/containerd/errdefs"
)

// Limits of evidence in bytes. They are far above what platforms make and bound what a verifier has to look at.
const (
	// MaxQuote bounds a TDX quote in its binary form; real ones have about 5,000 bytes, and the field that holds one up to 16 KiB.
	MaxQuote = 16 << 10
	// MaxEventLog bounds a CC event log in its binary form; the ACPI table that names its area gives it 64 KiB as a rule.
	MaxEventLog = 512 << 10
	// MaxCertificate bounds one certificate in DER.
	MaxCertificate = 16 << 10
	// MaxCertificates bounds the certificates of one SNPEvidence.
	MaxCertificates = 16
)

// TDXEvidence is the primary evidence of TEETDX.
type TDXEvidence struct {
	// EventLog is the CC event log in base64, or nil where the guest has none.
	EventLog *string `json:"cc_eventlog"`
	// Quote is the quote in base64.
	Quote string `json:"quote"`
}

// SNPEvidence is the primary evidence of TEESNP.
type SNPEvidence struct {
	Report SNPReport `json:"attestation_report"`
	// Certificates are those that the host gave the guest; empty where it gave none.
	Certificates []SNPCertificate `json:"cert_chain"`
}

// SNPCertificate is one entry of the certificate table of an extended report.
type SNPCertificate struct {
	Type SNPCertType `json:"cert_type"`
	// Data is the certificate in DER.
	Data Octets `json:"data"`
}

// SNPCertType says what a certificate of an SNPEvidence is.
type SNPCertType string

// The kinds of certificates. An entry with a GUID that none of them has is SNPOther; its GUID is not kept, nobody needs it.
const (
	SNPEmpty SNPCertType = "Empty"
	SNPARK   SNPCertType = "ARK"
	SNPASK   SNPCertType = "ASK"
	SNPVCEK  SNPCertType = "VCEK"
	SNPVLEK  SNPCertType = "VLEK"
	SNPCRL   SNPCertType = "CRL"
	SNPOther SNPCertType = "OTHER"
)

// UnmarshalJSON implements json.Unmarshaler. SNPOther is written as an object {"OTHER": GUID}.
func (t *SNPCertType) UnmarshalJSON(raw []byte) error {
	var other struct {
		GUID *string `json:"OTHER"`
	}
	if len(raw) > 0 && raw[0] == '{' {
		if err := json.Unmarshal(raw, &other); err != nil || other.GUID == nil {
			return fmt.Errorf("unknown kind of certificate: %w", errdefs.ErrInvalidArgument)
		}
		*t = SNPOther
		return nil
	}
	var name string
	if err := json.Unmarshal(raw, &name); err != nil {
		return fmt.Errorf("kind of certificate is no string: %w", errdefs.ErrInvalidArgument)
	}
	switch kind := SNPCertType(name); kind {
	case SNPEmpty, SNPARK, SNPASK, SNPVCEK, SNPVLEK, SNPCRL:
		*t = kind
		return nil
	}
	return fmt.Errorf("unknown kind of certificate: %w", errdefs.ErrInvalidArgument)
}

// Octets is a byte string that JSON shows as an array of numbers.
type Octets []byte

// MarshalJSON implements json.Marshaler.
func (o Octets) MarshalJSON() ([]byte, error) {
	out := make([]byte, 0, 2+4*len(o))
	out = append(out, '[')
	for i, b := range o {
		if i > 0 {
			out = append(out, ',')
		}
		out = strconv.AppendUint(out, uint64(b), 10)
	}
	return append(out, ']'), nil
}

// UnmarshalJSON implements json.Unmarshaler.
func (o *Octets) UnmarshalJSON(raw []byte) error {
	var numbers []uint16
	if err := json.Unmarshal(raw, &numbers); err != nil || numbers == nil {
		return fmt.Errorf("byte string is no array of numbers: %w", errdefs.ErrInvalidArgument)
	}
	*o = make(Octets, len(numbers))
	for i, number := range numbers {
		if number > 0xff {
			return fmt.Errorf("byte string has a number above 255: %w", errdefs.ErrInvalidArgument)
		}
		(*o)[i] = byte(number)
	}
	return nil
}
