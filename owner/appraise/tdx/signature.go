package tdx

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	_ "embed"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-tdx-guest/abi"
	"github.com/google/go-tdx-guest/pcs"
	"github.com/google/go-tdx-guest/verify"
)

// intelRoot is the certificate of Intel's SGX and TDX root
// (https://certificates.trustedservices.intel.com/Intel_SGX_Provisioning_Certification_RootCA.pem).
//
//go:embed intel_root.pem
var intelRoot []byte

// The quoting enclave that Intel signs for TDX (TD_QE in Intel's enclave identities). Any enclave can get its report signed by the
// platform, so a quote is worth nothing unless the enclave behind it is this one.
const (
	qeSigner  = "\xdc\x9e\x2a\x7c\x6f\x94\x8f\x17\x47\x4e\x34\xa7\xfc\x43\xed\x03\x0f\x7c\x15\x63\xf1\xba\xbd\xdf\x63\x40\xc8\x2e\x0e\x54\xa8\xc5"
	qeProduct = 2
)

// Where the fields of an enclave's report are (Intel Software Developer's Manual, volume 3D, table 38-21).
const (
	reportMiscSelect = 16
	reportAttributes = 48
	reportMRSigner   = 128
	reportProductID  = 256
	reportSVN        = 258
	reportData       = 320
	attributeDebug   = 1 << 1
)

// Intel's certificates above those of platforms: the one for platforms of several processor packages, which are registered, and the one
// for those of a single package (Intel SGX PCK Certificate and CRL Profile Specification). Both lead to the same root.
const (
	platformCA  = "Intel SGX PCK Platform CA"
	processorCA = "Intel SGX PCK Processor CA"
)

// platform is the machine that a quote comes from, by its verified certificate.
type platform struct {
	pck, intermediate *x509.Certificate
	pcs.PckExtensions
}

// checkSignatures verifies a quote down to Intel's root. raw is what q was read from.
func (v *Verifier) checkSignatures(raw []byte, q *quote) (*platform, error) {
	refuse := func(reason string) (*platform, error) {
		return nil, fmt.Errorf("TDX quote: %s: %w", reason, errdefs.ErrPermissionDenied)
	}
	p, err := readPlatform(q.pckChain, v.root, v.Now())
	if err != nil {
		return refuse(err.Error())
	}
	pckKey, ok := p.pck.PublicKey.(*ecdsa.PublicKey)
	if !ok || pckKey.Curve != elliptic.P256() || !checkECDSA(pckKey, q.qeReport, q.qeSignature) {
		return refuse("the platform did not sign the report of the quoting enclave")
	}
	if string(q.qeReport[reportMRSigner:reportMRSigner+32]) != qeSigner || binary.LittleEndian.Uint16(q.qeReport[reportProductID:]) != qeProduct ||
		q.qeReport[reportAttributes]&attributeDebug != 0 {
		return refuse("the enclave that made it is not Intel's quoting enclave")
	}
	vouched := sha256.Sum256(append(bytes.Clone(q.attestationKey), q.qeAuthData...))
	if !bytes.Equal(q.qeReport[reportData:], append(vouched[:], make([]byte, 32)...)) {
		return refuse("the quoting enclave does not vouch for its key")
	}
	key, err := attestationKey(q.attestationKey)
	if err != nil || !checkECDSA(key, q.signed, q.signature) {
		return refuse("it is not signed by its key")
	}
	if q.version != 4 || p.intermediate.Subject.CommonName == processorCA { // the library knows neither
		return p, nil
	}
	roots := x509.NewCertPool()
	roots.AddCert(v.root)
	parsed, err := abi.QuoteToProto(raw)
	if err != nil {
		return nil, fmt.Errorf("TDX quote of version 4 cannot be read: %w", errdefs.ErrInvalidArgument)
	}
	if err := verify.TdxQuote(parsed, &verify.Options{Now: v.Now(), TrustedRoots: roots}); err != nil {
		return refuse("it does not verify as version 4")
	}
	return p, nil
}

// attestationKey reads X and Y. A point that is not on the curve is an error.
func attestationKey(raw []byte) (*ecdsa.PublicKey, error) {
	return ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append([]byte{4}, raw...))
}

// checkECDSA verifies a signature that is R and S, big-endian.
func checkECDSA(key *ecdsa.PublicKey, message, signature []byte) bool {
	digest := sha256.Sum256(message)
	r, s := new(big.Int).SetBytes(signature[:sigSize/2]), new(big.Int).SetBytes(signature[sigSize/2:])
	return ecdsa.Verify(key, digest[:], r, s)
}

// readPlatform verifies the chain of certificates in a quote: the platform's, the intermediate one, and the root, which is only compared.
func readPlatform(chain []byte, root *x509.Certificate, now time.Time) (*platform, error) {
	certificates, err := parseChain(chain)
	if err != nil {
		return nil, err
	}
	if len(certificates) != 3 || !certificates[2].Equal(root) {
		return nil, errors.New("its chain of certificates does not lead to a root that is trusted")
	}
	options := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
	options.Roots.AddCert(root)
	options.Intermediates.AddCert(certificates[1])
	p := &platform{pck: certificates[0], intermediate: certificates[1]}
	if _, err := p.pck.Verify(options); err != nil {
		return nil, errors.New("its chain of certificates does not lead to a root that is trusted, or is not valid today")
	}
	if ca := p.intermediate.Subject.CommonName; p.pck.Subject.CommonName != "Intel SGX PCK Certificate" || ca != platformCA && ca != processorCA {
		return nil, errors.New("its certificate is none of a platform")
	}
	extensions, err := pcs.PckCertificateExtensions(p.pck)
	if err != nil {
		return nil, errors.New("its platform's certificate does not describe the platform")
	}
	p.PckExtensions = *extensions
	return p, nil
}

// maxChain is the number of certificates in a chain.
const maxChain = 3

func parseChain(chain []byte) ([]*x509.Certificate, error) {
	var certificates []*x509.Certificate
	for rest := bytes.TrimRight(chain, "\x00\n\r "); len(rest) > 0; {
		block, next := pem.Decode(rest)
		if block == nil || block.Type != "CERTIFICATE" || len(certificates) == maxChain {
			return nil, errors.New("its chain of certificates cannot be read")
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, errors.New("its chain of certificates cannot be read")
		}
		certificates, rest = append(certificates, certificate), next
	}
	return certificates, nil
}
