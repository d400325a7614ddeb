package tdx

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"math/big"
	"slices"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-tdx-guest/pcs"

	"github.com/coffer-project/coffer/owner/appraise"
)

// Intel certifies platforms of one processor package by another intermediate certificate.
func TestRealProcessorChain(t *testing.T) {
	v := verifier(t, Options{})
	chain := append(file(t, "pck-processor.pem"), intelRoot...)
	p, err := readPlatform(chain, v.root, now)
	if err != nil {
		t.Fatal(err)
	}
	if p.intermediate.Subject.CommonName != processorCA || p.FMSPC != "00a067110000" || p.PCEID != "0000" {
		t.Errorf("got %s, %+v", p.intermediate.Subject, p.PckExtensions)
	}
}

// No quote of a TDX guest on such a platform is public, so this one is forged, down to a root of its own.
func TestForgedQuotes(t *testing.T) {
	for name, tc := range map[string]struct {
		file, ca string
		want     error
	}{
		"version 4, several packages": {"quote-v4.bin", platformCA, nil},
		"version 4, one package":      {"quote-v4.bin", processorCA, nil},
		"version 5, several packages": {"quote-v5.bin", platformCA, nil},
		"version 5, one package":      {"quote-v5.bin", processorCA, nil},
		"version 4, other":            {"quote-v4.bin", "Intel SGX TCB Signing", errdefs.ErrPermissionDenied},
		"version 5, other":            {"quote-v5.bin", "Intel SGX TCB Signing", errdefs.ErrPermissionDenied},
	} {
		t.Run(name, func(t *testing.T) {
			raw, root := forge(t, file(t, tc.file), tc.ca)
			reportData := parsed(t, raw).body.reportData
			v := verifier(t, Options{})
			if _, err := v.Verify(t.Context(), appraise.Evidence{Raw: document(t, raw, nil), ReportData: reportData}); !errors.Is(err, errdefs.ErrPermissionDenied) {
				t.Errorf("with Intel's root: got %v", err)
			}
			v.root = root
			if _, err := v.Verify(t.Context(), appraise.Evidence{Raw: document(t, raw, nil), ReportData: reportData}); !errors.Is(err, tc.want) {
				t.Fatalf("got %v", err)
			}
			if tc.want != nil {
				return
			}
			q := parsed(t, raw)
			for at := range len(q.signed) + len(q.signature) + len(q.attestationKey) + 4 + 6 + reportSize + sigSize {
				if at%13 != 0 {
					continue
				}
				tampered := slices.Clone(raw)
				tampered[at] ^= 1
				if _, err := v.Verify(t.Context(), appraise.Evidence{Raw: document(t, tampered, nil), ReportData: reportData}); err == nil {
					t.Errorf("byte %#x was changed", at)
				}
			}
		})
	}
}

// forge signs a real quote again, with a platform, its maker (named ca) and a root of its own.
func forge(t *testing.T, raw []byte, ca string) ([]byte, *x509.Certificate) {
	t.Helper()
	chain, root, pckKey := forgeChain(t, parsed(t, raw).pckChain, ca)
	attestation := newKey(t)
	q := parsed(t, raw)
	public, err := attestation.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	report := slices.Clone(q.qeReport)
	vouched := sha256.Sum256(append(public[1:], q.qeAuthData...))
	copy(report[reportData:], append(vouched[:], make([]byte, 32)...))
	inner := append(report, sign(t, pckKey, report)...)
	inner = binary.LittleEndian.AppendUint16(inner, uint16(len(q.qeAuthData)))
	inner = append(inner, q.qeAuthData...)
	inner = binary.LittleEndian.AppendUint16(inner, certPCKChain)
	inner = binary.LittleEndian.AppendUint32(inner, uint32(len(chain)))
	inner = append(inner, chain...)
	outer := append(sign(t, attestation, q.signed), public[1:]...)
	outer = binary.LittleEndian.AppendUint16(outer, certQEReport)
	outer = binary.LittleEndian.AppendUint32(outer, uint32(len(inner)))
	outer = append(outer, inner...)
	out := binary.LittleEndian.AppendUint32(slices.Clone(q.signed), uint32(len(outer)))
	return append(out, outer...), root
}

// forgeChain copies what a real platform's certificate says about the platform.
func forgeChain(t *testing.T, model []byte, ca string) (chain []byte, root *x509.Certificate, pckKey *ecdsa.PrivateKey) {
	t.Helper()
	certificates, err := parseChain(model)
	if err != nil {
		t.Fatal(err)
	}
	rootKey, caKey, pckKey := newKey(t), newKey(t), newKey(t)
	template := func(subject pkix.Name, isCA bool) *x509.Certificate {
		c := &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: subject, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), BasicConstraintsValid: true, IsCA: isCA,
			KeyUsage: x509.KeyUsageDigitalSignature, CRLDistributionPoints: []string{"https://crl.example"}, SubjectKeyId: []byte(subject.CommonName),
		}
		if isCA {
			c.KeyUsage = x509.KeyUsageCertSign
		}
		return c
	}
	issue := func(c, parent *x509.Certificate, key, parentKey *ecdsa.PrivateKey) *x509.Certificate {
		der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, parentKey)
		if err != nil {
			t.Fatal(err)
		}
		made, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		chain = append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), chain...)
		return made
	}
	rootTemplate := template(certificates[2].Subject, true)
	root = issue(rootTemplate, rootTemplate, rootKey, rootKey)
	caName := certificates[1].Subject
	caName.CommonName = ca
	caName.Names = nil
	middle := issue(template(caName, true), root, caKey, rootKey)
	pck := template(certificates[0].Subject, false)
	at := slices.IndexFunc(certificates[0].Extensions, func(e pkix.Extension) bool { return e.Id.Equal(pcs.OidSgxExtension) })
	pck.ExtraExtensions = certificates[0].Extensions[at : at+1]
	issue(pck, middle, pckKey, caKey)
	return chain, root, pckKey
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// sign returns R and S, big-endian.
func sign(t *testing.T, key *ecdsa.PrivateKey, message []byte) []byte {
	t.Helper()
	digest := sha256.Sum256(message)
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
}
