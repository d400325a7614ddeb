package kbs

import (
	"fmt"

	"github.com/containerd/errdefs"
)

// TEE names a kind of trusted execution environment in Request.TEE and in tokens.
type TEE string

// The CPU environments of the protocol. TEESample proves nothing: it exists for development.
const (
	TEESNP       TEE = "snp"
	TEETDX       TEE = "tdx"
	TEESGX       TEE = "sgx"
	TEEAzSNPvTPM TEE = "az-snp-vtpm"
	TEEAzTDXvTPM TEE = "az-tdx-vtpm"
	TEECCA       TEE = "cca"
	TEECSV       TEE = "csv"
	TEESE        TEE = "se"
	TEETPM       TEE = "tpm"
	TEESample    TEE = "sample"
)

// Validate returns InvalidArgument for a name that the protocol does not know.
func (t TEE) Validate() error {
	switch t {
	case TEESNP, TEETDX, TEESGX, TEEAzSNPvTPM, TEEAzTDXvTPM, TEECCA, TEECSV, TEESE, TEETPM, TEESample:
		return nil
	}
	return fmt.Errorf("unknown tee %q: %w", sanitize(string(t), 32), errdefs.ErrInvalidArgument)
}
