package attest

import (
	"bytes"
	"context"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/initdata"
)

// CheckInitData compares the digest of the measured document with what the TEE attests. It returns whether the document is attested: true
// when p is a TEE, which then was launched with this very document, false when p has no field for it. nil is the digest of no document: a
// TEE must then have been launched with none, or its host could keep the document from the guest that claims to have it.
// Everything else, and a TEE that does not answer, is FailedPrecondition.
func CheckInitData(ctx context.Context, p Platform, digest []byte) (bool, error) {
	field, err := p.InitDataField(ctx)
	if err != nil {
		return false, fmt.Errorf("ask the TEE (%s) which initdata it was launched with: %w: %w", p.TEE(), err, errdefs.ErrFailedPrecondition)
	}
	if field == nil {
		return false, nil
	}
	if bytes.Equal(field, initdata.Fit(digest, len(field))) {
		return digest != nil, nil
	}
	if digest == nil {
		return false, fmt.Errorf("this TEE (%s) was launched with an initdata digest, but the host gave no initdata: %w", p.TEE(), errdefs.ErrFailedPrecondition)
	}
	return false, fmt.Errorf("this TEE (%s) was launched with another initdata digest than that of the initdata that the host gave: %w", p.TEE(), errdefs.ErrFailedPrecondition)
}
