package snp

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/google/go-sev-guest/verify/trust"
)

// Roots are the certificates that endorse processors' keys, by product line ("Milan", "Genoa", "Turin").
type Roots map[string]*Root

// Root is the chain above the keys of one product line.
type Root struct {
	// ARK is the root. ASK endorses chips' keys (VCEK), ASVK those of cloud providers (VLEK); one of the two may be nil.
	ARK, ASK, ASVK *x509.Certificate
}

// The subjects of AMD's certificates, before the product line (VCEK certificate and KDS interface specification, table 2).
const (
	arkPrefix  = "ARK-"
	asvkPrefix = "SEV-VLEK-"
	askPrefix  = "SEV-"
)

// amdRoots returns AMD's own certificates, which go-sev-guest embeds.
func amdRoots() (Roots, error) {
	roots := Roots{}
	for _, bundle := range [][]byte{
		trust.AskArkMilanVcekBytes, trust.AskArkMilanVlekBytes,
		trust.AskArkGenoaVcekBytes, trust.AskArkGenoaVlekBytes,
		trust.AskArkTurinVcekBytes, trust.AskArkTurinVlekBytes,
	} {
		more, err := ParseRoots(bundle)
		if err != nil {
			return nil, err
		}
		for product, root := range more {
			if have := roots[product]; have != nil {
				root.ASK, root.ASVK = either(have.ASK, root.ASK), either(have.ASVK, root.ASVK)
			}
			roots[product] = root
		}
	}
	return roots, nil
}

func either(a, b *x509.Certificate) *x509.Certificate {
	if a != nil {
		return a
	}
	return b
}

// ParseRoots reads a bundle of certificates in PEM as AMD publishes it for a product line: the root and one or two intermediate ones, in
// any order. Several product lines may be in one bundle. Errors are InvalidArgument.
func ParseRoots(bundle []byte) (Roots, error) {
	roots := Roots{}
	for len(strings.TrimSpace(string(bundle))) > 0 {
		block, rest := pem.Decode(bundle)
		if block == nil || block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("certificate bundle has something else than certificates in PEM: %w", errdefs.ErrInvalidArgument)
		}
		bundle = rest
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate bundle: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		if err := roots.add(cert); err != nil {
			return nil, err
		}
	}
	if len(roots) == 0 {
		return nil, fmt.Errorf("certificate bundle is empty: %w", errdefs.ErrInvalidArgument)
	}
	for product, root := range roots {
		if err := root.check(); err != nil {
			return nil, fmt.Errorf("certificates for %s: %w: %w", product, err, errdefs.ErrInvalidArgument)
		}
	}
	return roots, nil
}

func (r Roots) add(cert *x509.Certificate) error {
	place := func(product string) *Root {
		if r[product] == nil {
			r[product] = &Root{}
		}
		return r[product]
	}
	name := cert.Subject.CommonName
	if product, ok := strings.CutPrefix(name, arkPrefix); ok {
		place(product).ARK = cert
	} else if product, ok := strings.CutPrefix(name, asvkPrefix); ok {
		place(product).ASVK = cert
	} else if product, ok := strings.CutPrefix(name, askPrefix); ok {
		place(product).ASK = cert
	} else {
		return fmt.Errorf("certificate bundle has %.64q, which is none of ARK, ASK and ASVK: %w", name, errdefs.ErrInvalidArgument)
	}
	return nil
}

// check verifies the chain once, so that a bundle that can never be used is found at start.
func (r *Root) check() error {
	if r.ARK == nil || r.ASK == nil && r.ASVK == nil {
		return errors.New("the root (ARK) and an intermediate certificate (ASK, ASVK) must be there")
	}
	if err := r.ARK.CheckSignatureFrom(r.ARK); err != nil {
		return fmt.Errorf("ARK is not signed by itself: %w", err)
	}
	for name, cert := range map[string]*x509.Certificate{"ASK": r.ASK, "ASVK": r.ASVK} {
		if cert == nil {
			continue
		}
		if err := cert.CheckSignatureFrom(r.ARK); err != nil {
			return fmt.Errorf("%s is not signed by the ARK: %w", name, err)
		}
	}
	return nil
}
