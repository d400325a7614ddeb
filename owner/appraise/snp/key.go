package snp

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/kds"

	"github.com/coffer-project/coffer/proto/kbs"
)

// endorsementKey is a processor's key (VCEK) or a cloud provider's (VLEK) with what its certificate, verified, says.
type endorsementKey struct {
	cert    *x509.Certificate
	signer  abi.ReportSigner
	product string
	extensions
	// endorser signed cert and is signed by the root. The three are valid from notBefore to notAfter. All are set by checkChain.
	root, endorser      *x509.Certificate
	notBefore, notAfter time.Time
}

// maxKeys bounds the verified keys that are remembered: one for each chip or provider whose guests came lately.
const maxKeys = 4096

// keyID is what a verified key depends on, besides the verifier's roots and the time.
type keyID struct {
	digest  [sha256.Size]byte // of the certificate
	signer  abi.ReportSigner
	product string // that the report names
}

// findKey returns the key that the report claims to be signed by. Its certificate comes from the evidence or, for a VCEK that the guest's
// host did not hand on, from the collateral.
func (v *Verifier) findKey(ctx context.Context, evidence *kbs.SNPEvidence) (*endorsementKey, error) {
	report := &evidence.Report
	info, err := abi.ParseSignerInfo(report.KeyInfo)
	if err != nil {
		return nil, fmt.Errorf("SNP report has unknown bits in its signer info: %w", errdefs.ErrInvalidArgument)
	}
	kind := map[abi.ReportSigner]kbs.SNPCertType{abi.VcekReportSigner: kbs.SNPVCEK, abi.VlekReportSigner: kbs.SNPVLEK}[info.SigningKey]
	if kind == "" {
		return nil, fmt.Errorf("SNP report is not signed: %w", errdefs.ErrPermissionDenied)
	}
	der, err := pickCertificate(evidence.Certificates, kind)
	if err != nil {
		return nil, err
	}
	product := productOf(report)
	if der == nil {
		if der, err = v.fetchVCEK(ctx, report, info, product); err != nil {
			return nil, err
		}
	}
	key, err := v.verifiedKey(der, info.SigningKey, product)
	if err != nil {
		return nil, err
	}
	if err := v.checkRevoked(ctx, key); err != nil {
		return nil, err
	}
	if key.signer == abi.VcekReportSigner && !sameChip(key.chipID, report.ChipID) {
		return nil, fmt.Errorf("certificate of the processor's key is another chip's: %w", errdefs.ErrPermissionDenied)
	}
	return key, nil
}

// verifiedKey reads a certificate and verifies its chain, both from memory where it has met it before. Keys are shared: nobody may
// change them.
func (v *Verifier) verifiedKey(der []byte, signer abi.ReportSigner, product string) (*endorsementKey, error) {
	id := keyID{digest: sha256.Sum256(der), signer: signer, product: product}
	if key, ok := v.keys.Get(id); ok && !v.Now().Before(key.notBefore) && !v.Now().After(key.notAfter) {
		return key, nil
	}
	key, err := parseKey(der, signer, product)
	if err != nil {
		return nil, err
	}
	if err := v.checkChain(key); err != nil {
		return nil, err
	}
	v.keys.Put(id, key)
	return key, nil
}

// sameChip compares a certificate's hardware ID with a report's chip ID. Turin's has 8 bytes, padded with zeros in the report. An ID that
// the host masked is all zeros and never matches.
func sameChip(hardwareID, chipID []byte) bool {
	if len(hardwareID) == 0 || len(hardwareID) > len(chipID) {
		return false
	}
	padded := make([]byte, len(chipID))
	copy(padded, hardwareID)
	return subtle.ConstantTimeCompare(padded, chipID) == 1
}

func pickCertificate(certificates []kbs.SNPCertificate, kind kbs.SNPCertType) ([]byte, error) {
	if len(certificates) > kbs.MaxCertificates {
		return nil, fmt.Errorf("SNP evidence has more than %d certificates: %w", kbs.MaxCertificates, errdefs.ErrInvalidArgument)
	}
	for _, certificate := range certificates {
		if len(certificate.Data) > kbs.MaxCertificate {
			return nil, fmt.Errorf("SNP evidence has a certificate of more than %d bytes: %w", kbs.MaxCertificate, errdefs.ErrInvalidArgument)
		}
		if certificate.Type == kind {
			return certificate.Data, nil
		}
	}
	return nil, nil
}

// productOf returns the product line, or "" for a report of version 2, which does not name the processor.
func productOf(report *kbs.SNPReport) string {
	if report.CPUFamily == nil || report.CPUModel == nil {
		return ""
	}
	switch family, model := *report.CPUFamily, *report.CPUModel; {
	case family == 0x19 && model <= 0x0f:
		return "Milan"
	case family == 0x19 && (model <= 0x1f || model >= 0xa0 && model <= 0xaf):
		return "Genoa"
	case family == 0x1a && model <= 0x11:
		return "Turin"
	}
	return "unknown"
}

// fetchVCEK looks the certificate up under the name that AMD's key distribution service gives it.
func (v *Verifier) fetchVCEK(ctx context.Context, report *kbs.SNPReport, info abi.SignerInfo, product string) ([]byte, error) {
	if info.SigningKey != abi.VcekReportSigner || product == "" || info.MaskChipKey {
		return nil, fmt.Errorf("SNP evidence brings no certificate of the key that signed it, and it can be found nowhere else: %w", errdefs.ErrInvalidArgument)
	}
	tcb, chip, fmc := report.ReportedTCB, report.ChipID, ""
	if tcb.FMC != nil {
		chip, fmc = chip[:8], fmt.Sprintf("fmcSPL=%02d&", *tcb.FMC)
	}
	address := fmt.Sprintf("https://kdsintf.amd.com/vcek/v1/%s/%s?%sblSPL=%02d&teeSPL=%02d&snpSPL=%02d&ucodeSPL=%02d",
		product, hex.EncodeToString(chip), fmc, tcb.Bootloader, tcb.TEE, tcb.SNP, tcb.Microcode)
	piece, err := v.Collateral.Get(ctx, address)
	if err != nil {
		return nil, fmt.Errorf("certificate of the processor's key: %w", err)
	}
	return piece.Body, nil
}

// parseKey reads the certificate and what AMD writes into it. It is not verified yet.
func parseKey(der []byte, signer abi.ReportSigner, product string) (*endorsementKey, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("certificate of the processor's key cannot be read: %w", errdefs.ErrInvalidArgument)
	}
	key, ok := cert.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P384() || cert.Subject.CommonName != askPrefix+signer.String() {
		return nil, fmt.Errorf("certificate of the processor's key is not one of a %s: %w", signer, errdefs.ErrPermissionDenied)
	}
	found, err := parseExtensions(cert)
	if err != nil {
		return nil, err
	}
	if product == "" { // the certificate has the stepping after a dash
		product, _, _ = strings.Cut(found.product, "-")
	}
	if hasFMC := found.tcb.FMC != nil; hasFMC != (product == "Turin") {
		return nil, fmt.Errorf("certificate of the processor's key is another product line's: %w", errdefs.ErrPermissionDenied)
	}
	return &endorsementKey{cert: cert, signer: signer, product: product, extensions: *found}, nil
}

// checkChain verifies that the certificate leads to the root of its product line.
func (v *Verifier) checkChain(key *endorsementKey) error {
	root := v.roots[key.product]
	if root == nil {
		return fmt.Errorf("SNP report is of a product line that this verifier has no root for: %w", errdefs.ErrPermissionDenied)
	}
	endorser := root.ASK
	if key.signer == abi.VlekReportSigner {
		endorser = root.ASVK
	}
	if endorser == nil {
		return fmt.Errorf("this verifier has no %s to verify keys of its kind: %w", endorserRole(key.signer), errdefs.ErrPermissionDenied)
	}
	options := x509.VerifyOptions{
		Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: v.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}
	options.Roots.AddCert(root.ARK)
	options.Intermediates.AddCert(endorser)
	chains, err := key.cert.Verify(options)
	if err != nil || len(chains) != 1 || len(chains[0]) != 3 {
		return fmt.Errorf("certificate of the processor's key does not lead to a root that is trusted, or is not valid today: %w", errdefs.ErrPermissionDenied)
	}
	key.root, key.endorser = root.ARK, endorser
	key.notBefore, key.notAfter = key.cert.NotBefore, key.cert.NotAfter
	for _, cert := range []*x509.Certificate{root.ARK, endorser} {
		if cert.NotBefore.After(key.notBefore) {
			key.notBefore = cert.NotBefore
		}
		if cert.NotAfter.Before(key.notAfter) {
			key.notAfter = cert.NotAfter
		}
	}
	return nil
}

// endorserRole names the intermediate certificate above keys of a kind as AMD's key distribution service does.
func endorserRole(signer abi.ReportSigner) string {
	if signer == abi.VlekReportSigner {
		return "ASVK"
	}
	return "ASK"
}

// checkRevoked refuses a key whose endorser the root has revoked. Without a current list, nothing is known.
func (v *Verifier) checkRevoked(ctx context.Context, key *endorsementKey) error {
	if !v.RequireCRL {
		return nil
	}
	address := kds.CrlLinkByRole(key.product, endorserRole(key.signer))
	piece, err := v.Collateral.Get(ctx, address)
	if err != nil {
		return fmt.Errorf("revocation list: %w", err)
	}
	list, err := x509.ParseRevocationList(piece.Body)
	if err != nil {
		return fmt.Errorf("revocation list %s cannot be read: %w", address, errdefs.ErrFailedPrecondition)
	}
	if err := list.CheckSignatureFrom(key.root); err != nil {
		return fmt.Errorf("revocation list %s is not signed by the root: %w", address, errdefs.ErrFailedPrecondition)
	}
	if now := v.Now(); now.Before(list.ThisUpdate) || !now.Before(list.NextUpdate) {
		return fmt.Errorf("revocation list %s is only valid from %s to %s: get a new one: %w", address, list.ThisUpdate, list.NextUpdate, errdefs.ErrFailedPrecondition)
	}
	for _, entry := range list.RevokedCertificateEntries {
		if entry.SerialNumber.Cmp(key.endorser.SerialNumber) == 0 {
			return fmt.Errorf("key that endorses processors of this product line was revoked: %w", errdefs.ErrPermissionDenied)
		}
	}
	return nil
}
