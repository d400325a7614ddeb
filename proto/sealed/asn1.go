package sealed

import (
	"encoding/asn1"
	"fmt"
	"math/big"

	"github.com/containerd/errdefs"
)

// joseSignature turns an ECDSA signature from ASN.1 into the form of JOSE.
func joseSignature(der []byte) ([]byte, error) {
	var pair struct{ R, S *big.Int }
	rest, err := asn1.Unmarshal(der, &pair)
	if err != nil || len(rest) > 0 || pair.R.Sign() <= 0 || pair.S.Sign() <= 0 || pair.R.BitLen() > 8*coordinateSize || pair.S.BitLen() > 8*coordinateSize {
		return nil, fmt.Errorf("the key makes no %s signatures: it is not of ECDSA on P-256: %w", algorithm, errdefs.ErrInvalidArgument)
	}
	out := make([]byte, signatureSize)
	pair.R.FillBytes(out[:coordinateSize])
	pair.S.FillBytes(out[coordinateSize:])
	return out, nil
}
