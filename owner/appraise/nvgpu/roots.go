package nvgpu

import (
	"crypto/x509"
	_ "embed"
	"encoding/pem"
	"fmt"

	"github.com/containerd/errdefs"
)

// deviceRoot and rimRoot are NVIDIA's roots of devices and of their reference values, as its own verifiers carry them
// (github.com/NVIDIA/nvtrust, verifier_device_root.pem and verifier_RIM_root.pem).
//
//go:embed device_root.pem
var deviceRoot []byte

//go:embed rim_root.pem
var rimRoot []byte

// The subjects of the roots.
const (
	deviceRootName = "NVIDIA Device Identity CA"
	rimRootName    = "NVIDIA CoRIM signing Root CA"
)

// Roots are the certificates that everything else leads to.
type Roots struct {
	// Device endorses devices, RIM the manifests of reference values.
	Device, RIM *x509.Certificate
}

// ParseRoots reads both roots in PEM, in any order. Errors are InvalidArgument.
func ParseRoots(bundle []byte) (*Roots, error) {
	roots := &Roots{}
	for block, rest := pem.Decode(bundle); block != nil; block, rest = pem.Decode(rest) {
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("roots of NVIDIA: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		if err := cert.CheckSignatureFrom(cert); err != nil {
			return nil, fmt.Errorf("roots of NVIDIA: %.64q is not signed by itself: %w: %w", cert.Subject.CommonName, err, errdefs.ErrInvalidArgument)
		}
		switch cert.Subject.CommonName {
		case deviceRootName:
			roots.Device = cert
		case rimRootName:
			roots.RIM = cert
		default:
			return nil, fmt.Errorf("roots of NVIDIA: %.64q is neither %q nor %q: %w", cert.Subject.CommonName, deviceRootName, rimRootName, errdefs.ErrInvalidArgument)
		}
	}
	if roots.Device == nil || roots.RIM == nil {
		return nil, fmt.Errorf("roots of NVIDIA: %q and %q must be there: %w", deviceRootName, rimRootName, errdefs.ErrInvalidArgument)
	}
	return roots, nil
}
