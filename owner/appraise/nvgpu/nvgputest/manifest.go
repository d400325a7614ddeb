package nvgputest

import (
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"maps"
	"math/big"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/beevik/etree"
	dsig "github.com/russellhaering/goxmldsig"

	"github.com/coffer-project/coffer/proto/kbs"
)

// driverMeasurements are the indexes that the forged driver's manifest speaks of; the firmware's speaks of the others up to 32.
var driverMeasurements = []uint8{8, 10, 12}

// Manifests writes manifests into a tree of collateral that fit what the device reports now.
func (d *Device) Manifests(dir string) error {
	driver, firmware := map[uint8][]byte{}, map[uint8][]byte{}
	for index, value := range d.Measurements {
		if d.Arch != kbs.NVIDIALS10 && slices.Contains(driverMeasurements, index) {
			driver[index] = value
		} else if index <= 32 {
			firmware[index] = value
		}
	}
	bios := strings.ToUpper(strings.ReplaceAll(d.VBIOS, ".", ""))
	switch d.Arch {
	case kbs.NVIDIALS10:
		return d.issuer.Manifest(dir, "NV_SWITCH_BIOS_5612_0002_890_"+bios, d.VBIOS, firmware)
	case kbs.NVIDIABlackwell:
		if err := d.issuer.Manifest(dir, "NV_GPU_CC_DRIVER_GB100_"+d.Driver, d.Driver, driver); err != nil {
			return err
		}
	default:
		if err := d.issuer.Manifest(dir, "NV_GPU_DRIVER_GH100_"+d.Driver, d.Driver, driver); err != nil {
			return err
		}
	}
	return d.issuer.Manifest(dir, "NV_GPU_VBIOS_1010_0200_882_"+bios, d.VBIOS, firmware)
}

// Manifest writes one manifest for a version of something, with the values of measurements by their index in reports.
func (s *Signer) Manifest(dir, name, version string, values map[uint8][]byte) error {
	const swid, sha384 = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd", "http://www.w3.org/2001/04/xmlenc#sha384"
	tag := etree.NewElement("SoftwareIdentity")
	tag.CreateAttr("xmlns", swid)
	tag.CreateAttr("xmlns:ns0", swid)
	tag.CreateAttr("xmlns:ns2", sha384)
	tag.CreateElement("ns0:Meta").CreateAttr("colloquialVersion", strings.ToUpper(version))
	payload := tag.CreateElement("ns0:Payload")
	for _, index := range slices.Sorted(maps.Keys(values)) {
		resource := payload.CreateElement("ns0:Resource")
		resource.CreateAttr("type", "Measurement")
		resource.CreateAttr("index", strconv.Itoa(int(index)-1))
		resource.CreateAttr("active", "True")
		resource.CreateAttr("alternatives", "2")
		resource.CreateAttr("ns2:Hash0", strings.Repeat("ab", 48))
		resource.CreateAttr("ns2:Hash1", hex.EncodeToString(values[index]))
	}
	context, err := dsig.NewSigningContext(s.rimSigner.key, [][]byte{s.rimSigner.cert.Raw, s.rim.cert.Raw})
	if err != nil {
		return fmt.Errorf("sign forged manifest: %w", err)
	}
	if err := context.SetSignatureMethod(dsig.ECDSASHA384SignatureMethod); err != nil {
		return fmt.Errorf("sign forged manifest: %w", err)
	}
	signed, err := context.SignEnveloped(tag)
	if err != nil {
		return fmt.Errorf("sign forged manifest: %w", err)
	}
	if err := asXML(signed.FindElement("./Signature/SignatureValue")); err != nil {
		return fmt.Errorf("sign forged manifest: %w", err)
	}
	document := etree.NewDocument()
	document.SetRoot(signed)
	text, err := document.WriteToBytes()
	if err != nil {
		return fmt.Errorf("write forged manifest: %w", err)
	}
	return write(filepath.Join(dir, "rim.attestation.nvidia.com", "v1", "rim", name), text)
}

// asXML rewrites a signature from ASN.1 to r and s, as XML signatures have them.
func asXML(value *etree.Element) error {
	der, err := base64.StdEncoding.DecodeString(value.Text())
	if err != nil {
		return err
	}
	var pair struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &pair); err != nil {
		return err
	}
	raw := append(pair.R.FillBytes(make([]byte, 48)), pair.S.FillBytes(make([]byte, 48))...)
	value.SetText(base64.StdEncoding.EncodeToString(raw))
	return nil
}
