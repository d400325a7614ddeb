package snp

import (
	"crypto/x509"
	"encoding/asn1"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/kbs"
)

// extensions is what AMD writes into certificates of processors' keys. go-sev-guest reads them too, but neither Turin's additional
// version (FMC) nor its short hardware ID.
type extensions struct {
	product string
	chipID  []byte // of a VCEK
	csp     string // the cloud provider of a VLEK
	tcb     kbs.SNPTCB
}

// amdArc is where AMD's extensions are (VCEK certificate and KDS interface specification, tables 8 to 11).
var amdArc = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1}

// parseExtensions reads them. A certificate that lacks one that its kind must have is PermissionDenied: it is none of AMD's.
func parseExtensions(cert *x509.Certificate) (*extensions, error) {
	values := map[[2]int][]byte{}
	for _, e := range cert.Extensions {
		if len(e.Id) == len(amdArc)+1 && e.Id[:len(amdArc)].Equal(amdArc) {
			values[[2]int{e.Id[len(amdArc)], 0}] = e.Value
		}
		if len(e.Id) == len(amdArc)+2 && e.Id[:len(amdArc)].Equal(amdArc) {
			values[[2]int{e.Id[len(amdArc)], e.Id[len(amdArc)+1]}] = e.Value
		}
	}
	x := &extensions{}
	var fmc uint8
	for _, level := range []struct {
		part     int
		into     *uint8
		optional bool
	}{{1, &x.tcb.Bootloader, false}, {2, &x.tcb.TEE, false}, {3, &x.tcb.SNP, false}, {8, &x.tcb.Microcode, false}, {9, &fmc, true}} {
		value, ok := values[[2]int{3, level.part}]
		if !ok && level.optional {
			continue
		}
		number := -1
		if rest, err := asn1.Unmarshal(value, &number); err != nil || len(rest) > 0 || number < 0 || number > 0xff {
			return nil, fmt.Errorf("certificate of the processor's key names no firmware versions: %w", errdefs.ErrPermissionDenied)
		}
		*level.into = uint8(number)
		if level.optional {
			x.tcb.FMC = &fmc
		}
	}
	if rest, err := asn1.UnmarshalWithParams(values[[2]int{2, 0}], &x.product, "ia5"); err != nil || len(rest) > 0 {
		return nil, fmt.Errorf("certificate of the processor's key names no product: %w", errdefs.ErrPermissionDenied)
	}
	x.chipID = hardwareID(values[[2]int{4, 0}])
	if value, ok := values[[2]int{5, 0}]; ok {
		if rest, err := asn1.UnmarshalWithParams(value, &x.csp, "ia5"); err != nil || len(rest) > 0 {
			return nil, fmt.Errorf("certificate of the cloud provider's key does not name it: %w", errdefs.ErrPermissionDenied)
		}
	}
	return x, nil
}

// hardwareID takes the value as it is or as an octet string: AMD's service has written both.
func hardwareID(value []byte) []byte {
	var id []byte
	if rest, err := asn1.Unmarshal(value, &id); err == nil && len(rest) == 0 && (len(id) == 8 || len(id) == 64) {
		return id
	}
	if len(value) == 8 || len(value) == 64 {
		return value
	}
	return nil
}
