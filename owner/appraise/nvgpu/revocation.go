package nvgpu

import (
	"context"
	"crypto/sha1" //nolint:gosec // names keys here, as OCSP does
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/crypto/ocsp"
)

// ocspHost answers for all of NVIDIA's certificates.
const ocspHost = "ocsp.ndis.nvidia.com"

// ocspAddress is where the answer on a certificate is kept. NVIDIA's service takes its questions by POST, so this is a name for a file and
// not an address to ask: the answer's own bytes, as openssl ocsp -respout writes them.
func ocspAddress(cert, issuer *x509.Certificate) (string, error) {
	var spki struct {
		Algorithm asn1.RawValue
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(issuer.RawSubjectPublicKeyInfo, &spki); err != nil {
		return "", fmt.Errorf("key of an issuer: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	sum := sha1.Sum(spki.Key.RightAlign()) //nolint:gosec // as above
	return fmt.Sprintf("https://%s/%s/%x", ocspHost, hex.EncodeToString(sum[:]), cert.SerialNumber), nil
}

// checkRevocation looks for answers on all certificates that name a service for them. It reports whether there was a current one for each.
// A certificate that was revoked is PermissionDenied; with must, a missing answer is an error that names its file.
func (v *Verifier) checkRevocation(ctx context.Context, chain []*x509.Certificate, must bool) (bool, error) {
	known := false
	for i, cert := range chain[:len(chain)-1] {
		if len(cert.OCSPServer) == 0 {
			continue
		}
		good, err := v.answer(ctx, cert, chain[i+1])
		if err != nil && (must || !errdefs.IsNotFound(err) && !errdefs.IsFailedPrecondition(err)) {
			return false, err
		}
		if !good {
			return false, nil
		}
		known = true
	}
	return known, nil
}

// answer is true for a certificate that is not revoked. NotFound: there is no answer; FailedPrecondition: there is one that cannot be used.
func (v *Verifier) answer(ctx context.Context, cert, issuer *x509.Certificate) (bool, error) {
	address, err := ocspAddress(cert, issuer)
	if err != nil {
		return false, err
	}
	piece, err := v.offline.Get(ctx, address)
	if err != nil {
		return false, fmt.Errorf("OCSP answer on certificate %x: %w", cert.SerialNumber, err)
	}
	response, err := ocsp.ParseResponseForCert(piece.Body, cert, issuer)
	if err != nil {
		return false, fmt.Errorf("OCSP answer %s cannot be used: %w: %w", address, err, errdefs.ErrFailedPrecondition)
	}
	if c := response.Certificate; c != nil && (v.Now().Before(c.NotBefore) || v.Now().After(c.NotAfter)) {
		return false, fmt.Errorf("OCSP answer %s is signed by a key whose certificate is not valid today: %w", address, errdefs.ErrFailedPrecondition)
	}
	switch response.Status {
	case ocsp.Good:
	case ocsp.Revoked:
		return false, refuse("NVIDIA revoked a certificate in its chain")
	default:
		return false, fmt.Errorf("OCSP answer %s does not know the certificate: %w", address, errdefs.ErrFailedPrecondition)
	}
	if now := v.Now(); now.Before(response.ThisUpdate) || !response.NextUpdate.IsZero() && !now.Before(response.NextUpdate) || now.Sub(response.ThisUpdate) > maxOCSPAge {
		return false, fmt.Errorf("OCSP answer %s is only valid from %s to %s, and for %s at most: get a new one: %w",
			address, response.ThisUpdate, response.NextUpdate, maxOCSPAge, errdefs.ErrFailedPrecondition)
	}
	return true, nil
}

// maxOCSPAge bounds answers that name no end.
const maxOCSPAge = 30 * 24 * time.Hour
