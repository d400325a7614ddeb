// Package nvgputest forges the evidence of NVIDIA's devices: right in every byte, but signed by keys of its own under roots of its own. Tests
// and demonstrations use it in place of GPUs. Only verifiers that were given its roots believe it; no program that is shipped links it.
package nvgputest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1" //nolint:gosec // names keys, as OCSP does
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/coffer-project/coffer/proto/kbs"
)

// ocspHost is the service that forged certificates name. It is NVIDIA's: verifiers ask no other.
const ocspHost = "ocsp.ndis.nvidia.com"

// Signer stands for NVIDIA.
type Signer struct {
	device, identity, rim, rimSigner authority
}

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// New returns a Signer with new roots.
func New() (*Signer, error) {
	s := &Signer{}
	for _, step := range []struct {
		into   *authority
		issuer *authority
		name   string
	}{
		{&s.device, nil, "NVIDIA Device Identity CA"},
		{&s.identity, &s.device, "NVIDIA forged Identity"},
		{&s.rim, nil, "NVIDIA CoRIM signing Root CA"},
		{&s.rimSigner, &s.rim, "NVIDIA forged Reference Value"},
	} {
		made, err := issue(step.issuer, step.name, "", step.into != &s.rimSigner, nil)
		if err != nil {
			return nil, err
		}
		*step.into = *made
	}
	return s, nil
}

// Roots returns both roots in PEM, for a verifier's Options.TestRoots or a broker's configuration.
func (s *Signer) Roots() []byte {
	return append(encode(s.device.cert), encode(s.rim.cert)...)
}

func encode(cert *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
}

// issue makes a key and its certificate; without an issuer it signs itself.
func issue(issuer *authority, name, serial string, ca bool, more []pkix.Extension) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make forged key: %w", err)
	}
	number, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("make forged serial number: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: number, Subject: pkix.Name{CommonName: name, Organization: []string{"NVIDIA"}, SerialNumber: serial},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		BasicConstraintsValid: ca, IsCA: ca, KeyUsage: x509.KeyUsageDigitalSignature, ExtraExtensions: more,
	}
	if ca {
		template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	}
	parent, signer := template, key
	if issuer != nil {
		parent, signer = issuer.cert, issuer.key
		if ca {
			template.OCSPServer = []string{"http://" + ocspHost}
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		return nil, fmt.Errorf("make forged certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make forged certificate: %w", err)
	}
	return &authority{cert: cert, key: key}, nil
}

// Device stands for one device. Its fields say what it reports.
type Device struct {
	Arch kbs.NVIDIAArch
	UUID string
	// Driver and VBIOS are versions, the second of five pairs of hexadecimal digits between dots. Switches have no driver.
	Driver, VBIOS string
	// FWID names its firmware, in the certificate and in reports.
	FWID []byte
	// Measurements are the values by index. At first each index has its own.
	Measurements map[uint8][]byte
	// Opaque replaces what reports say besides; a nil value leaves an entry out.
	Opaque map[uint16][]byte

	chip, leaf *authority
	issuer     *Signer
}

// The devices as Device makes them.
const (
	Driver = "570.00.01"
	VBIOS  = "96.00.01.00.0a"
)

var chips = map[kbs.NVIDIAArch]string{kbs.NVIDIAHopper: "GH100", kbs.NVIDIABlackwell: "GB100", kbs.NVIDIALS10: "LS_10"}

// Device makes a device.
func (s *Signer) Device(arch kbs.NVIDIAArch, uuid string) (*Device, error) {
	d := &Device{
		Arch: arch, UUID: uuid, Driver: Driver, VBIOS: VBIOS, FWID: bytes.Repeat([]byte{0xf1}, 48), issuer: s,
		Measurements: map[uint8][]byte{}, Opaque: map[uint16][]byte{},
	}
	for i := uint8(1); i <= 64; i++ {
		d.Measurements[i] = bytes.Repeat([]byte{i}, 48)
	}
	var err error
	if d.chip, err = issue(&s.identity, chips[arch]+" A01 GSP BROM", "chip of "+uuid, true, nil); err != nil {
		return nil, err
	}
	extension, err := firmware(arch, d.FWID)
	if err != nil {
		return nil, err
	}
	if d.leaf, err = issue(d.chip, chips[arch]+" A01 GSP FMC LF", "", false, []pkix.Extension{extension}); err != nil {
		return nil, err
	}
	return d, nil
}

// firmware encodes the extension that names the firmware in certificates of a generation.
func firmware(arch kbs.NVIDIAArch, fwid []byte) (pkix.Extension, error) {
	type id struct {
		Algorithm asn1.ObjectIdentifier
		Digest    []byte
	}
	own := id{asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 2}, fwid}
	if arch == kbs.NVIDIABlackwell {
		value, err := asn1.Marshal(struct {
			Vendor []byte `asn1:"tag:0"`
			FWIDs  []id   `asn1:"tag:6"`
		}{[]byte("NVIDIA"), []id{own, {own.Algorithm, make([]byte, 48)}}})
		return pkix.Extension{Id: asn1.ObjectIdentifier{2, 23, 133, 5, 4, 1, 1}, Value: value}, err
	}
	value, err := asn1.Marshal(struct {
		Version int
		Key     []int // some sequence
		FWID    id
	}{1, []int{}, own})
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 23, 133, 5, 4, 1}, Value: value}, err
}

// Chain returns the device's chain in PEM.
func (d *Device) Chain() []byte {
	var out []byte
	for _, a := range []*authority{d.leaf, d.chip, &d.issuer.identity, &d.issuer.device} {
		out = append(out, encode(a.cert)...)
	}
	return out
}

// Answers writes what NVIDIA's service would say about the certificates of a device into a tree of collateral: that they are good, or that
// the chip's was revoked.
func (d *Device) Answers(dir string, at time.Time, revoked bool) error {
	for _, pair := range [][2]*authority{{d.chip, &d.issuer.identity}, {&d.issuer.identity, &d.issuer.device}} {
		cert, issuer := pair[0].cert, pair[1]
		answer := ocsp.Response{Status: ocsp.Good, SerialNumber: cert.SerialNumber, ThisUpdate: at.Add(-time.Hour), NextUpdate: at.Add(time.Hour)}
		if revoked && pair[0] == d.chip {
			answer.Status, answer.RevokedAt = ocsp.Revoked, at.Add(-time.Hour)
		}
		der, err := ocsp.CreateResponse(issuer.cert, issuer.cert, answer, issuer.key)
		if err != nil {
			return fmt.Errorf("make forged OCSP answer: %w", err)
		}
		key, err := issuer.key.PublicKey.Bytes()
		if err != nil {
			return fmt.Errorf("make forged OCSP answer: %w", err)
		}
		sum := sha1.Sum(key) //nolint:gosec // as above
		if err := write(filepath.Join(dir, ocspHost, fmt.Sprintf("%x", sum), fmt.Sprintf("%x", cert.SerialNumber)), der); err != nil {
			return err
		}
	}
	return nil
}

func write(name string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	return os.WriteFile(name, data, 0o600)
}
