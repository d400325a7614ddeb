package nvgpu

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha512"
	"crypto/subtle"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"math/big"
	"regexp"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/kbs"
)

// maxChain bounds the certificates of a chain; real ones have 5.
const maxChain = 8

// model is what is known of a generation: which chips it has, by the subject of their certificates, and where these name the firmware.
type model struct {
	class string
	chips *regexp.Regexp
	fwid  func(value []byte) ([]byte, error)
	oid   asn1.ObjectIdentifier
	// noFWID: reports of the generation do not name their firmware, only its certificate does.
	noFWID bool
}

// The extensions that name the firmware (TCG DICE Attestation Architecture, sections 6.1.1 and 8): one is only a hash, the other a list.
var (
	oidFWID    = asn1.ObjectIdentifier{2, 23, 133, 5, 4, 1}
	oidTCBInfo = asn1.ObjectIdentifier{2, 23, 133, 5, 4, 1, 1}
)

// models are the generations whose evidence was seen to have this very shape; of Blackwell's chips that of GB100. Any other is refused.
var models = map[kbs.NVIDIAArch]model{
	kbs.NVIDIAHopper:    {class: classGPU, chips: regexp.MustCompile(`^GH100 `), oid: oidFWID, fwid: plainFWID},
	kbs.NVIDIABlackwell: {class: classGPU, chips: regexp.MustCompile(`^GB[12][0-9]{2} `), oid: oidTCBInfo, fwid: listedFWID},
	kbs.NVIDIALS10:      {class: classSwitch, chips: regexp.MustCompile(`^LS_10 `), oid: oidFWID, fwid: plainFWID, noFWID: true},
}

func refuse(reason string) error {
	return fmt.Errorf("evidence of an NVIDIA device: %s: %w", reason, errdefs.ErrPermissionDenied)
}

// parseChain reads a chain in PEM, the device's certificate first.
func parseChain(text []byte) ([]*x509.Certificate, error) {
	var chain []*x509.Certificate
	for len(bytes.TrimSpace(bytes.TrimRight(text, "\x00"))) > 0 {
		block, rest := pem.Decode(text)
		if block == nil || block.Type != "CERTIFICATE" || len(chain) == maxChain {
			return nil, fmt.Errorf("certificate chain of an NVIDIA device is not one of 2 to %d certificates in PEM: %w", maxChain, errdefs.ErrInvalidArgument)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate of an NVIDIA device cannot be read: %w", errdefs.ErrInvalidArgument)
		}
		chain, text = append(chain, cert), rest
	}
	if len(chain) < 2 {
		return nil, fmt.Errorf("certificate chain of an NVIDIA device is not one of 2 to %d certificates in PEM: %w", maxChain, errdefs.ErrInvalidArgument)
	}
	return chain, nil
}

// checkChain verifies that a chain, as it is, leads to root. It returns it with root as its last certificate, whether or not it was sent.
// It is our own walk because these certificates are for devices: some of those that issue others name no path length, and all end in 9999.
func checkChain(chain []*x509.Certificate, root *x509.Certificate, now time.Time) ([]*x509.Certificate, error) {
	if !chain[len(chain)-1].Equal(root) {
		chain = append(slices.Clip(chain), root)
	}
	for i, cert := range chain {
		if i+1 < len(chain) { // the root is the one that is trusted
			issuer := chain[i+1]
			if err := cert.CheckSignatureFrom(issuer); err != nil || !bytes.Equal(cert.RawIssuer, issuer.RawSubject) {
				return nil, refuse("its certificate does not lead to a root that is trusted")
			}
		}
		if now.Before(cert.NotBefore) || now.After(cert.NotAfter) {
			return nil, refuse("a certificate is not valid today")
		}
		if len(cert.UnhandledCriticalExtensions) > 0 {
			return nil, refuse("a certificate has a critical extension that is not understood")
		}
	}
	if leaf := chain[0]; leaf.IsCA || leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return nil, refuse("its certificate is not for signing reports")
	}
	return chain, nil
}

// checkModel refuses a device that is not of the generation that it is said to be, or runs other firmware than its certificate is for.
func checkModel(arch kbs.NVIDIAArch, leaf *x509.Certificate, r *report) (model, error) {
	m, known := models[arch]
	if !known {
		return m, refuse("it is of a generation that this verifier does not know")
	}
	if !m.chips.MatchString(leaf.Subject.CommonName) {
		return m, refuse("its certificate is not one of the generation that it is said to be")
	}
	said, named := r.opaque[opaqueFWID]
	if !named {
		if m.noFWID {
			return m, nil
		}
		return m, refuse("its report names no firmware: a newer driver is needed")
	}
	for _, e := range leaf.Extensions {
		if !e.Id.Equal(m.oid) {
			continue
		}
		fwid, err := m.fwid(e.Value)
		if err != nil || subtle.ConstantTimeCompare(fwid, said) != 1 {
			return m, refuse("it runs other firmware than its certificate is for")
		}
		return m, nil
	}
	return m, refuse("its certificate names no firmware")
}

// plainFWID reads the extension that holds a version, a key, and one hash of firmware.
func plainFWID(value []byte) ([]byte, error) {
	var id struct {
		Version int
		Key     asn1.RawValue
		FWID    firmwareID
	}
	if rest, err := asn1.Unmarshal(value, &id); err != nil || len(rest) > 0 || len(id.FWID.Digest) != hashSize {
		return nil, errdefs.ErrInvalidArgument
	}
	return id.FWID.Digest, nil
}

// firmwareID is FWID of the specification.
type firmwareID struct {
	Algorithm asn1.ObjectIdentifier
	Digest    []byte
}

// listedFWID takes the first entry of the list [6] in TcbInfo.
func listedFWID(value []byte) ([]byte, error) {
	var fields []asn1.RawValue
	if rest, err := asn1.Unmarshal(value, &fields); err != nil || len(rest) > 0 {
		return nil, errdefs.ErrInvalidArgument
	}
	for _, field := range fields {
		if field.Class != asn1.ClassContextSpecific || field.Tag != 6 {
			continue
		}
		var entry firmwareID
		if _, err := asn1.Unmarshal(field.Bytes, &entry); err != nil || len(entry.Digest) != hashSize {
			return nil, errdefs.ErrInvalidArgument
		}
		return entry.Digest, nil
	}
	return nil, errdefs.ErrNotFound
}

// checkSignature verifies that the device's key signed the report.
func checkSignature(leaf *x509.Certificate, r *report) error {
	key, ok := leaf.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P384() {
		return refuse("its key is not one of ECDSA over P-384")
	}
	digest := sha512.Sum384(r.signed)
	half := signatureSize / 2
	if !ecdsa.Verify(key, digest[:], new(big.Int).SetBytes(r.signature[:half]), new(big.Int).SetBytes(r.signature[half:])) {
		return refuse("its key did not sign the report")
	}
	return nil
}
