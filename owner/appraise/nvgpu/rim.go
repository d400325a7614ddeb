package nvgpu

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"math/big"
	"strconv"
	"strings"

	"github.com/beevik/etree"
	"github.com/containerd/errdefs"
	dsig "github.com/russellhaering/goxmldsig"

	"github.com/coffer-project/coffer/owner/appraise/collateral"
	"github.com/coffer-project/coffer/proto/kbs"
)

// rimHost publishes manifests. Its answer is a JSON document with the manifest in base64; a file may hold the manifest itself.
const rimHost = "rim.attestation.nvidia.com"

// maxAlternatives bounds the values of one measurement.
const maxAlternatives = 64

// manifest is a verified reference integrity manifest: a signed software identity tag (ISO/IEC 19770-2) with golden measurements.
type manifest struct {
	version string
	// golden lists the trusted values of each active measurement by its index in reports, which count from 1; manifests count from 0.
	golden map[uint8][][]byte
}

// manifestNames returns the names of the manifests for a device's driver and firmware. An empty name means that there is none of the kind.
func manifestNames(arch kbs.NVIDIAArch, settings map[string]any) (driver, firmware string) {
	text := func(name string) string {
		value, _ := settings[name].(string)
		return value
	}
	chip, version := "", strings.ToUpper(strings.ReplaceAll(text("vbios_version"), ".", ""))
	switch arch {
	case kbs.NVIDIALS10: // there is one kind of switch, and reports do not name it
		return "", "NV_SWITCH_BIOS_5612_0002_890_" + version
	case kbs.NVIDIAHopper:
		driver = "NV_GPU_DRIVER_GH100_"
	default:
		if chip = text("chip_info"); chip == "" {
			chip = "GB100"
		}
		driver = "NV_GPU_CC_DRIVER_" + chip + "_"
	}
	return driver + text("driver_version"), strings.ToUpper(strings.Join([]string{"NV_GPU_VBIOS", text("project"), text("project_sku"), text("chip_sku"), version}, "_"))
}

// manifest returns the named manifest, for the version that the device reports. NotFound: there is none; FailedPrecondition: it cannot be
// used, for example because its certificates have expired.
func (v *Verifier) manifest(ctx context.Context, name, version string) (*manifest, error) {
	piece, err := v.Collateral.Get(ctx, "https://"+rimHost+"/v1/rim/"+name)
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w", name, err)
	}
	m, err := v.parseManifest(piece)
	if err != nil {
		return nil, fmt.Errorf("manifest %s cannot be used: %w: %w", name, err, errdefs.ErrFailedPrecondition)
	}
	if !strings.EqualFold(m.version, version) {
		return nil, fmt.Errorf("manifest %s is for version %.64q instead of %.64q: %w", name, m.version, version, errdefs.ErrFailedPrecondition)
	}
	return m, nil
}

func (v *Verifier) parseManifest(piece *collateral.Piece) (*manifest, error) {
	text := piece.Body
	if bytes.HasPrefix(bytes.TrimSpace(text), []byte("{")) {
		var answer struct {
			RIM []byte `json:"rim"`
		}
		if err := kbs.Decode(text, collateral.MaxSize, &answer); err != nil {
			return nil, err
		}
		text = answer.RIM
	}
	document := etree.NewDocument()
	if err := document.ReadFromBytes(text); err != nil || document.Root() == nil {
		return nil, fmt.Errorf("it is no XML document: %w", errdefs.ErrInvalidArgument)
	}
	tag, err := v.checkTag(document.Root())
	if err != nil {
		return nil, err
	}
	return readTag(tag)
}

// checkTag verifies the tag's signature and its chain, and returns what was signed: nothing else of the document may be used.
func (v *Verifier) checkTag(tag *etree.Element) (*etree.Element, error) {
	bad := func(reason string) (*etree.Element, error) {
		return nil, fmt.Errorf("%s: %w", reason, errdefs.ErrPermissionDenied)
	}
	signature := tag.FindElement("./Signature")
	if signature == nil {
		return bad("it is not signed")
	}
	var chain []*x509.Certificate
	for _, entry := range signature.FindElements("./KeyInfo/X509Data/X509Certificate") {
		der, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(entry.Text()), ""))
		if err != nil || len(chain) == maxChain {
			return bad("its certificates cannot be read")
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return bad("its certificates cannot be read")
		}
		chain = append(chain, cert)
	}
	if len(chain) < 2 {
		return bad("it has no chain of certificates")
	}
	if _, err := checkChain(chain, v.roots.RIM, v.Now()); err != nil {
		return nil, err
	}
	if err := toASN1(signature); err != nil {
		return nil, err
	}
	check := dsig.NewDefaultValidationContext(&dsig.MemoryX509CertificateStore{Roots: chain[:1]}) // of which the rest has just been verified
	check.Clock = dsig.NewFakeClockAt(v.Now())
	signed, err := check.Validate(tag)
	if err != nil {
		return bad("its signature is wrong")
	}
	return signed, nil
}

// toASN1 rewrites the signature's value, r and s as XML signatures have them (RFC 4050), to the encoding that goxmldsig hands on to
// crypto/x509. No digest covers the value.
func toASN1(signature *etree.Element) error {
	value := signature.FindElement("./SignatureValue")
	if value == nil {
		return fmt.Errorf("its signature has no value: %w", errdefs.ErrPermissionDenied)
	}
	raw, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(value.Text()), ""))
	if err != nil || len(raw) != signatureSize {
		return fmt.Errorf("its signature is not one of ECDSA over P-384: %w", errdefs.ErrPermissionDenied)
	}
	half := signatureSize / 2
	der, err := asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(raw[:half]), new(big.Int).SetBytes(raw[half:])})
	if err != nil {
		return fmt.Errorf("encode signature: %w", err)
	}
	value.SetText(base64.StdEncoding.EncodeToString(der))
	return nil
}

// readTag reads a verified tag.
func readTag(tag *etree.Element) (*manifest, error) {
	bad := func(reason string) (*manifest, error) {
		return nil, fmt.Errorf("it %s: %w", reason, errdefs.ErrInvalidArgument)
	}
	meta, payload := tag.FindElement("./Meta"), tag.FindElement("./Payload")
	if meta == nil || payload == nil {
		return bad("is no manifest of measurements")
	}
	m := &manifest{version: meta.SelectAttrValue("colloquialVersion", ""), golden: map[uint8][][]byte{}}
	seen := map[uint64]bool{}
	for _, resource := range payload.SelectElements("Resource") {
		index, err := strconv.ParseUint(resource.SelectAttrValue("index", ""), 10, 8)
		if err != nil || index >= maxBlocks || seen[index] {
			return bad("names a measurement twice, or an impossible one")
		}
		seen[index] = true
		if resource.SelectAttrValue("active", "") == "False" {
			continue
		}
		count, err := strconv.ParseUint(resource.SelectAttrValue("alternatives", ""), 10, 8)
		if err != nil || count == 0 || count > maxAlternatives {
			return bad("has a measurement without values")
		}
		for i := range count {
			value, err := hex.DecodeString(resource.SelectAttrValue("Hash"+strconv.FormatUint(i, 10), ""))
			if err != nil || len(value) != hashSize {
				return bad("has a value that is no SHA-384")
			}
			m.golden[uint8(index)+1] = append(m.golden[uint8(index)+1], value)
		}
	}
	if len(m.golden) == 0 {
		return bad("names no measurement")
	}
	return m, nil
}
