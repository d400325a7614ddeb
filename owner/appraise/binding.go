package appraise

import (
	"crypto/subtle"
	"fmt"

	"github.com/containerd/errdefs"
)

// CheckReportData returns PermissionDenied unless field, a TEE's report data, is want left aligned and padded with zeros. An empty want
// binds to nothing and is refused.
func (e Evidence) CheckReportData(field []byte) error {
	if len(e.ReportData) == 0 || len(e.ReportData) > len(field) || !equalPadded(field, e.ReportData) {
		return fmt.Errorf("evidence is not bound to this session and key: %w", errdefs.ErrPermissionDenied)
	}
	return nil
}

// CheckInitData returns PermissionDenied where the guest sent initdata that field, which the host set when it launched the TEE (HOST_DATA
// of SNP, MRCONFIGID of TDX), does not hold. Digests that are too long for the field are cut, shorter ones padded with zeros
// (initdata specification 0.1.0). Without initdata there is nothing to compare; policies see that no document was proved.
func (e Evidence) CheckInitData(field []byte) error {
	if e.InitDataDigest == nil {
		return nil
	}
	digest := e.InitDataDigest[:min(len(e.InitDataDigest), len(field))]
	if len(digest) == 0 || !equalPadded(field, digest) {
		return fmt.Errorf("initdata is not the one that the TEE was launched with: %w", errdefs.ErrPermissionDenied)
	}
	return nil
}

// equalPadded compares field with value padded by zeros to the same length. value must not be longer.
func equalPadded(field, value []byte) bool {
	padded := make([]byte, len(field))
	copy(padded, value)
	return subtle.ConstantTimeCompare(field, padded) == 1
}
