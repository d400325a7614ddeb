package tdx

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-tdx-guest/pcs"

	"github.com/coffer-project/coffer/proto/kbs"
)

// The headers in which Intel sends the certificates of those who signed an answer.
const (
	tcbChainHeader = "Tcb-Info-Issuer-Chain"
	qeChainHeader  = "Sgx-Enclave-Identity-Issuer-Chain"
)

const rootCRLAddress = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"

// tcb is what Intel's collateral says about a platform.
type tcb struct {
	status     pcs.TcbComponentStatus
	date       string
	advisories []string
	expired    bool
}

// checkTCB holds a quote against Intel's collateral. Collateral that is not there is NotFound; that which is not Intel's, or is not for
// this platform, is FailedPrecondition: that is a fault of the broker's files, not of the guest.
func (v *Verifier) checkTCB(ctx context.Context, q *quote, p *platform) (*tcb, error) {
	var info pcs.TdxTcbInfo
	infoSigner, err := v.signed(ctx, pcs.TcbInfoURL(p.FMSPC), tcbChainHeader, "tcbInfo", &info)
	if err != nil {
		return nil, err
	}
	var identity pcs.QeIdentity
	qeSigner, err := v.signed(ctx, pcs.QeIdentityURL(), qeChainHeader, "enclaveIdentity", &identity)
	if err != nil {
		return nil, err
	}
	if v.RequireCRL {
		if err := v.checkRevoked(ctx, p, infoSigner, qeSigner); err != nil {
			return nil, err
		}
	}
	if !strings.EqualFold(info.TcbInfo.Fmspc, p.FMSPC) || !strings.EqualFold(info.TcbInfo.PceID, p.PCEID) || info.TcbInfo.ID != "TDX" || info.TcbInfo.Version != 3 {
		return nil, fmt.Errorf("TCB information in the collateral is not for TDX platforms of FMSPC %s: %w", p.FMSPC, errdefs.ErrFailedPrecondition)
	}
	if identity.EnclaveIdentity.ID != "TD_QE" {
		return nil, fmt.Errorf("enclave identity in the collateral is not the TDX quoting enclave's: %w", errdefs.ErrFailedPrecondition)
	}
	t, err := platformLevel(q, p, &info.TcbInfo)
	if err != nil {
		return nil, err
	}
	for _, part := range []func() (pcs.TcbComponentStatus, error){
		func() (pcs.TcbComponentStatus, error) { return moduleLevel(q, &info.TcbInfo) },
		func() (pcs.TcbComponentStatus, error) { return enclaveLevel(q, &identity.EnclaveIdentity) },
	} {
		status, err := part()
		if err != nil {
			return nil, err
		}
		t.status = converge(t.status, status)
	}
	now := v.Now()
	t.expired = outside(now, info.TcbInfo.IssueDate, info.TcbInfo.NextUpdate) ||
		outside(now, identity.EnclaveIdentity.IssueDate, identity.EnclaveIdentity.NextUpdate)
	return t, nil
}

func outside(now, from, to time.Time) bool { return now.Before(from) || !now.Before(to) }

// signed reads a piece of collateral that Intel signed: member of the document, by the certificates in header. It returns the signer.
func (v *Verifier) signed(ctx context.Context, address, header, member string, into any) (*x509.Certificate, error) {
	piece, err := v.Collateral.Get(ctx, address)
	if err != nil {
		return nil, err
	}
	bad := func(reason string) (*x509.Certificate, error) {
		return nil, fmt.Errorf("collateral %s %s: get it anew: %w", address, reason, errdefs.ErrFailedPrecondition)
	}
	chain, err := url.QueryUnescape(piece.Header.Get(header))
	if err != nil || chain == "" {
		return bad("has no header " + header + " (a file of the same name with .header after it)")
	}
	certificates, err := parseChain([]byte(chain))
	if err != nil || len(certificates) != 2 || !certificates[1].Equal(v.root) {
		return bad("has certificates that do not lead to Intel's root")
	}
	signer := certificates[0]
	options := x509.VerifyOptions{Roots: x509.NewCertPool(), CurrentTime: v.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
	options.Roots.AddCert(v.root)
	if _, err := signer.Verify(options); err != nil || signer.Subject.CommonName != "Intel SGX TCB Signing" {
		return bad("is not signed by Intel, or by a certificate that is not valid today")
	}
	var members map[string]json.RawMessage
	var signature string
	if err := kbs.Decode(piece.Body, len(piece.Body), &members); err != nil {
		return bad("cannot be read")
	}
	if err := json.Unmarshal(members["signature"], &signature); err != nil {
		return bad("has no signature")
	}
	rs, err := hex.DecodeString(signature)
	key, ok := signer.PublicKey.(*ecdsa.PublicKey)
	if err != nil || len(rs) != sigSize || !ok || !checkECDSA(key, members[member], rs) {
		return bad("is not what Intel signed")
	}
	if err := json.Unmarshal(piece.Body, into); err != nil {
		return bad("cannot be read")
	}
	return signer, nil
}

// checkRevoked looks the certificates up in Intel's lists.
func (v *Verifier) checkRevoked(ctx context.Context, p *platform, signers ...*x509.Certificate) error {
	ca := "platform"
	if p.intermediate.Subject.CommonName == processorCA {
		ca = "processor"
	}
	if err := v.notRevoked(ctx, rootCRLAddress, v.root, append(signers, p.intermediate)...); err != nil {
		return err
	}
	return v.notRevoked(ctx, pcs.PckCrlURL(ca), p.intermediate, p.pck)
}

func (v *Verifier) notRevoked(ctx context.Context, address string, issuer *x509.Certificate, certificates ...*x509.Certificate) error {
	piece, err := v.Collateral.Get(ctx, address)
	if err != nil {
		return fmt.Errorf("revocation list: %w", err)
	}
	list, err := x509.ParseRevocationList(piece.Body)
	if err != nil {
		return fmt.Errorf("revocation list %s cannot be read: %w", address, errdefs.ErrFailedPrecondition)
	}
	if err := list.CheckSignatureFrom(issuer); err != nil {
		return fmt.Errorf("revocation list %s is not signed by its issuer: %w", address, errdefs.ErrFailedPrecondition)
	}
	if outside(v.Now(), list.ThisUpdate, list.NextUpdate) {
		return fmt.Errorf("revocation list %s is only valid from %s to %s: get a new one: %w", address, list.ThisUpdate, list.NextUpdate, errdefs.ErrFailedPrecondition)
	}
	for _, entry := range list.RevokedCertificateEntries {
		if slices.ContainsFunc(certificates, func(c *x509.Certificate) bool { return entry.SerialNumber.Cmp(c.SerialNumber) == 0 }) {
			return fmt.Errorf("certificate of the platform, or one above it, was revoked: %w", errdefs.ErrPermissionDenied)
		}
	}
	return nil
}

// errNoLevel says that Intel's collateral knows no platform that is as old as this one.
var errNoLevel = fmt.Errorf("TDX quote's platform has firmware below every level that Intel knows: %w", errdefs.ErrPermissionDenied)

// platformLevel finds the newest TCB level that the platform reaches in all parts (Intel PCS documentation, "Get TDX TCB Info").
func platformLevel(q *quote, p *platform, info *pcs.TcbInfo) (*tcb, error) {
	first := 0
	if q.body.teeTCBSVN[1] > 0 { // the first two parts are the TDX module's; from its version 1 on it has levels of its own
		first = 2
	}
	for _, level := range info.TcbLevels {
		if p.TCB.PCESvn < level.Tcb.Pcesvn || !reaches(p.TCB.CPUSvnComponents, level.Tcb.SgxTcbcomponents, 0) ||
			!reaches(q.body.teeTCBSVN, level.Tcb.TdxTcbcomponents, first) {
			continue
		}
		return &tcb{status: level.TcbStatus, date: level.TcbDate, advisories: level.AdvisoryIDs}, nil
	}
	return nil, errNoLevel
}

func reaches(have []byte, want []pcs.TcbComponent, first int) bool {
	if len(have) != len(want) {
		return false
	}
	for i := first; i < len(have); i++ {
		if have[i] < want[i].Svn {
			return false
		}
	}
	return true
}

// moduleLevel verifies the TDX module's signer and finds its level.
func moduleLevel(q *quote, info *pcs.TcbInfo) (pcs.TcbComponentStatus, error) {
	signer, attributes, mask := info.TdxModule.Mrsigner, info.TdxModule.Attributes, info.TdxModule.AttributesMask
	levels := []pcs.TcbLevel{{TcbStatus: pcs.TcbComponentStatusUpToDate}}
	if version := q.body.teeTCBSVN[1]; version > 0 {
		at := slices.IndexFunc(info.TdxModuleIdentities, func(i pcs.TdxModuleIdentity) bool { return strings.EqualFold(i.ID, fmt.Sprintf("TDX_%02x", version)) })
		if at < 0 {
			return "", errNoLevel
		}
		found := info.TdxModuleIdentities[at]
		signer, attributes, mask, levels = found.Mrsigner, found.Attributes, found.AttributesMask, found.TcbLevels
	}
	if !bytes.Equal(signer.Bytes, q.body.mrSignerSeam) || !masked(q.body.seamAttributes, mask.Bytes, attributes.Bytes) {
		return "", fmt.Errorf("TDX quote's module is not Intel's: %w", errdefs.ErrPermissionDenied)
	}
	return levelBySVN(levels, uint32(q.body.teeTCBSVN[0]))
}

// enclaveLevel verifies the quoting enclave against its identity and finds its level.
func enclaveLevel(q *quote, identity *pcs.EnclaveIdentity) (pcs.TcbComponentStatus, error) {
	misc := slices.Clone(q.qeReport[reportMiscSelect : reportMiscSelect+4])
	slices.Reverse(misc) // the identity writes the number's digits, the report its bytes
	if !masked(misc, identity.MiscselectMask.Bytes, identity.Miscselect.Bytes) ||
		!masked(q.qeReport[reportAttributes:reportAttributes+16], identity.AttributesMask.Bytes, identity.Attributes.Bytes) ||
		!bytes.Equal(q.qeReport[reportMRSigner:reportMRSigner+32], identity.Mrsigner.Bytes) ||
		binary.LittleEndian.Uint16(q.qeReport[reportProductID:]) != identity.IsvProdID {
		return "", fmt.Errorf("TDX quote's quoting enclave is not the one that Intel describes: %w", errdefs.ErrPermissionDenied)
	}
	return levelBySVN(identity.TcbLevels, uint32(binary.LittleEndian.Uint16(q.qeReport[reportSVN:])))
}

func levelBySVN(levels []pcs.TcbLevel, svn uint32) (pcs.TcbComponentStatus, error) {
	for _, level := range levels {
		if svn >= level.Tcb.Isvsvn {
			return level.TcbStatus, nil
		}
	}
	return "", errNoLevel
}

func masked(value, mask, want []byte) bool {
	if len(value) != len(mask) || len(value) != len(want) {
		return false
	}
	for i := range value {
		if value[i]&mask[i] != want[i] {
			return false
		}
	}
	return true
}

// converge lets a part that is out of date or revoked show in the whole.
func converge(whole, part pcs.TcbComponentStatus) pcs.TcbComponentStatus {
	if part == pcs.TcbComponentStatusRevoked || whole == pcs.TcbComponentStatusRevoked {
		return pcs.TcbComponentStatusRevoked
	}
	if part == pcs.TcbComponentStatusUpToDate {
		return whole
	}
	switch whole {
	case pcs.TcbComponentStatusConfigurationNeeded, pcs.TcbComponentStatusConfigurationAndSWHardeningNeeded, pcs.TcbComponentStatusOutOfDateConfigurationNeeded:
		return pcs.TcbComponentStatusOutOfDateConfigurationNeeded
	}
	return pcs.TcbComponentStatusOutOfDate
}
