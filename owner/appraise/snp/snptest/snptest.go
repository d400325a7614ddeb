// Package snptest forges attestation reports of SNP guests: right in every byte, but signed by keys of its own under roots of its own.
// Tests and demonstrations use it in place of a processor. Only verifiers that were given its roots believe it; no program that is
// shipped links it.
package snptest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"slices"
	"time"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/kds"
	sevtest "github.com/google/go-sev-guest/testing"

	"github.com/coffer-project/coffer/proto/kbs"
)

// keyBits is the size of the forged roots' keys. AMD's have 4096 bits, which take long to make; verifiers do not look at the size.
const keyBits = 2048

// Provider is the cloud provider that forged VLEK certificates name.
const Provider = "snptest"

// Signer stands for one chip and its maker.
type Signer struct {
	// Product is the product line.
	Product string
	// ChipID is the chip's name, 64 bytes.
	ChipID []byte
	// TCB is the version of the chip's firmware.
	TCB   kbs.SNPTCB
	certs *sevtest.AmdSigner
}

// Report is what a guest's report is to say. Nil fields are zeros.
type Report struct {
	ReportData, Measurement, HostData []byte
	// Policy is the guest policy; 0 stands for one that allows SMT and nothing else.
	Policy uint64
	// VLEK signs with the cloud provider's key.
	VLEK bool
	// Edit changes the report before it is signed; nil changes nothing.
	Edit func(*kbs.SNPReport)
}

// New returns a Signer for a product line: "Milan", "Genoa" or "Turin".
func New(product string) (*Signer, error) {
	s := &Signer{Product: product, ChipID: make([]byte, 64), TCB: kbs.SNPTCB{Bootloader: 4, TEE: 1, SNP: 22, Microcode: 213}}
	size := 64
	if product == "Turin" {
		size, s.TCB.FMC = 8, new(uint8(2))
	}
	rand.Read(s.ChipID[:size])
	keys := &sevtest.AmdKeys{}
	var err error
	for _, key := range []**rsa.PrivateKey{&keys.Ark, &keys.Ask, &keys.Asvk} {
		if *key, err = rsa.GenerateKey(rand.Reader, keyBits); err != nil {
			return nil, fmt.Errorf("make forged root: %w", err)
		}
	}
	for _, key := range []**ecdsa.PrivateKey{&keys.Vcek, &keys.Vlek} {
		if *key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader); err != nil {
			return nil, fmt.Errorf("make forged chip key: %w", err)
		}
	}
	now := time.Now().Add(-time.Hour)
	builder := &sevtest.AmdSignerBuilder{
		Keys: keys, ProductName: product + "-B0", CSPID: Provider,
		ArkCreationTime: now, AskCreationTime: now, AsvkCreationTime: now, VcekCreationTime: now, VlekCreationTime: now,
		VcekCustom: sevtest.CertOverride{Extensions: s.extensions(s.ChipID[:size])},
		VlekCustom: sevtest.CertOverride{Extensions: s.extensions(nil)},
	}
	if s.certs, err = builder.TestOnlyCertChain(); err != nil {
		return nil, fmt.Errorf("make forged certificates: %w", err)
	}
	return s, nil
}

// extensions lists what AMD writes into certificates of keys, with Turin's own version in its place.
func (s *Signer) extensions(chipID []byte) []pkix.Extension {
	parts := kds.TCBParts{BlSpl: s.TCB.Bootloader, TeeSpl: s.TCB.TEE, SnpSpl: s.TCB.SNP, UcodeSpl: s.TCB.Microcode}
	list := sevtest.CustomExtensions(parts, chipID, Provider, s.Product+"-B0")
	if s.TCB.FMC != nil {
		value, err := asn1.Marshal(int(*s.TCB.FMC))
		if err != nil {
			panic(err) // a small number has an encoding
		}
		list = append(list, pkix.Extension{Id: append(slices.Clone(kds.OidUcodeSpl[:len(kds.OidUcodeSpl)-1]), 9), Value: value})
	}
	return list
}

// Roots returns the forged roots in PEM, for a verifier's Options.TestRoots or a broker's configuration.
func (s *Signer) Roots() []byte {
	var out bytes.Buffer
	for _, cert := range []*x509.Certificate{s.certs.Ask, s.certs.Asvk, s.certs.Ark} {
		if err := pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}); err != nil {
			panic(err) // memory does not fail
		}
	}
	return out.Bytes()
}

// Certificate returns the certificate of the chip's key in DER.
func (s *Signer) Certificate() []byte { return s.certs.Vcek.Raw }

// Revocations returns a list in DER that revokes the intermediate key, or that revokes nothing, current around at.
func (s *Signer) Revocations(at time.Time, revoked bool) ([]byte, error) {
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: at.Add(-time.Hour), NextUpdate: at.Add(time.Hour)}
	if revoked {
		list.RevokedCertificateEntries = []x509.RevocationListEntry{{SerialNumber: s.certs.Ask.SerialNumber, RevocationTime: at}}
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, s.certs.Ark, s.certs.Keys.Ark)
	if err != nil {
		return nil, fmt.Errorf("make forged revocation list: %w", err)
	}
	return der, nil
}

// Evidence returns a guest's evidence with the certificate of the key that signed it.
func (s *Signer) Evidence(want Report) (json.RawMessage, error) {
	raw, err := s.Sign(want)
	if err != nil {
		return nil, err
	}
	report, err := kbs.ParseSNPReport(raw)
	if err != nil {
		return nil, err
	}
	certificate := kbs.SNPCertificate{Type: kbs.SNPVCEK, Data: s.certs.Vcek.Raw}
	if want.VLEK {
		certificate = kbs.SNPCertificate{Type: kbs.SNPVLEK, Data: s.certs.Vlek.Raw}
	}
	evidence, err := json.Marshal(kbs.SNPEvidence{Report: *report, Certificates: []kbs.SNPCertificate{certificate}})
	if err != nil {
		return nil, fmt.Errorf("encode forged evidence: %w", err)
	}
	return evidence, nil
}

// Sign returns a report's bytes with their signature.
func (s *Signer) Sign(want Report) ([]byte, error) {
	report := s.fill(want)
	if want.Edit != nil {
		want.Edit(report)
	}
	raw, err := report.Raw()
	if err != nil {
		return nil, fmt.Errorf("forge report: %w", err)
	}
	key := s.certs.Keys.Vcek
	if want.VLEK {
		key = s.certs.Keys.Vlek
	}
	digest := sha512.Sum384(raw[:0x2a0])
	r, signature, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		return nil, fmt.Errorf("sign forged report: %w", err)
	}
	report.Signature = kbs.SNPSignature{R: littleEndian(r), S: littleEndian(signature)}
	return report.Raw()
}

func littleEndian(n *big.Int) kbs.Octets {
	out := n.FillBytes(make([]byte, 72))
	slices.Reverse(out)
	return out
}

func (s *Signer) fill(want Report) *kbs.SNPReport {
	sized := func(value []byte, size int) kbs.Octets {
		out := make(kbs.Octets, size)
		copy(out, value)
		return out
	}
	if want.Policy == 0 {
		want.Policy = abi.SnpPolicyToBytes(abi.SnpPolicy{SMT: true})
	}
	signer := abi.VcekReportSigner
	if want.VLEK {
		signer = abi.VlekReportSigner
	}
	processor := map[string][3]uint8{"Milan": {0x19, 1, 1}, "Genoa": {0x19, 0x11, 1}, "Turin": {0x1a, 2, 1}}[s.Product]
	version := kbs.SNPVersion{Major: 1, Minor: 55, Build: 40}
	return &kbs.SNPReport{
		Version: 3, Policy: want.Policy, SigAlgo: abi.SignEcdsaP384Sha384, PlatformInfo: 1,
		KeyInfo:   abi.ComposeSignerInfo(abi.SignerInfo{SigningKey: signer}),
		CPUFamily: &processor[0], CPUModel: &processor[1], CPUStepping: &processor[2],
		FamilyID: sized(nil, 16), ImageID: sized(nil, 16), ReportData: sized(want.ReportData, 64),
		Measurement: sized(want.Measurement, 48), HostData: sized(want.HostData, 32),
		IDKeyDigest: sized(nil, 48), AuthorKeyDigest: sized(nil, 48), ReportID: sized(nil, 32), ReportIDMA: sized(nil, 32),
		ChipID: slices.Clone(s.ChipID), CurrentTCB: s.TCB, ReportedTCB: s.TCB, CommittedTCB: s.TCB, LaunchTCB: s.TCB,
		Current: version, Committed: version,
		Signature: kbs.SNPSignature{R: sized(nil, 72), S: sized(nil, 72)},
	}
}
