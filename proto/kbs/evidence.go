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

// UnmarshalJSON implements json.Unmarshaler. It parses the numbers itself: encoding/json takes ten times as long for them.
func (o *Octets) UnmarshalJSON(raw []byte) error {
	bad := func(reason string) error { return fmt.Errorf("byte string %s: %w", reason, errdefs.ErrInvalidArgument) }
	if len(raw) < 2 || raw[0] != '[' || raw[len(raw)-1] != ']' {
		return bad("is no array of numbers")
	}
	out := make(Octets, 0, len(raw)/2)
	number, digits := 0, 0
	for _, b := range raw[1:] {
		switch {
		case b >= '0' && b <= '9' && digits < 3:
			number, digits = 10*number+int(b-'0'), digits+1
		case b >= '0' && b <= '9', number > 0xff:
			return bad("has a number above 255")
		case b == ',' || b == ']':
			if digits > 0 {
				out = append(out, byte(number))
			}
			number, digits = 0, 0
		case b != ' ' && b != '\t' && b != '\n' && b != '\r': // JSON itself has been checked: blanks stand between numbers only
			return bad("is no array of numbers")
		}
	}
	*o = out
	return nil
}
