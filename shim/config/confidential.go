package config

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// TEE is what keeps the host out of a guest.
type TEE string

// TEEs.
const (
	TEENone TEE = "none"
	TEESNP  TEE = "snp"
	TEETDX  TEE = "tdx"
)

// legacySEV are names under which people ask for AMD's older kinds of confidential guests.
var legacySEV = map[TEE]bool{"sev": true, "sev-es": true, "seves": true}

// SNP is how AMD SEV-SNP guests are launched.
type SNP struct {
	// Policy is the guest policy (SEV Secure Nested Paging Firmware ABI, section 4.3), which reports carry.
	Policy uint64 `toml:"policy"`
	// IDBlock and IDAuth are files of an ID block and its authentication, raw or in base64; empty for none. AuthorKey says
	// that the authentication has an author's key, too.
	IDBlock   string `toml:"id_block"`
	IDAuth    string `toml:"id_auth"`
	AuthorKey bool   `toml:"author_key"`

	// idBlock and idAuth are the files' content, read by Load.
	idBlock, idAuth []byte
}

// ID is the content of IDBlock and IDAuth, nil when there is none. It is set by Load only.
func (s SNP) ID() (block, auth []byte) { return s.idBlock, s.idAuth }

// TDX is how Intel TDX guests are launched.
type TDX struct {
	// MROwner and MROwnerConfig are what quotes carry under these names: 48 bytes in hexadecimal, empty for zeros.
	MROwner       string `toml:"mrowner"`
	MROwnerConfig string `toml:"mrownerconfig"`
	// QuoteService is where the host's quote generation service listens; empty for none.
	QuoteService QuoteService `toml:"quote_service"`
}

// QuoteService is an address: unix:PATH or vsock:CID:PORT.
type QuoteService string

// Unix is the path of a unix socket, or else empty.
func (q QuoteService) Unix() string {
	path, ok := strings.CutPrefix(string(q), "unix:")
	if !ok {
		return ""
	}
	return path
}

// Vsock is a vsock address, and false when it is none.
func (q QuoteService) Vsock() (cid, port uint32, ok bool) {
	address, ok := strings.CutPrefix(string(q), "vsock:")
	if !ok {
		return 0, 0, false
	}
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return 0, 0, false
	}
	c, cidErr := strconv.ParseUint(host, 10, 32)
	p, portErr := strconv.ParseUint(service, 10, 32)
	return uint32(c), uint32(p), cidErr == nil && portErr == nil
}

// Bits of SNP.Policy, and the sizes of what goes with it, in bytes (the same document, sections 4.3, 8.15 and 8.16).
const (
	policySMT      = 1 << 16
	policyReserved = 1 << 17
	policyMigrate  = 1 << 18
	policyDebug    = 1 << 19

	idBlockSize = 96
	idAuthSize  = 4096
	// tdxFieldSize is that of MROwner and MROwnerConfig.
	tdxFieldSize = 48
)

// readID reads the files that SNP names.
func (s *SNP) readID() (err error) {
	if s.idBlock, err = readSized("snp.id_block", s.IDBlock, idBlockSize); err != nil {
		return err
	}
	s.idAuth, err = readSized("snp.id_auth", s.IDAuth, idAuthSize)
	return err
}

// readSized reads a file that holds size bytes, as they are or in base64.
func readSized(key, path string, size int) ([]byte, error) {
	if path == "" {
		return nil, nil
	}
	raw, err := readBounded(path)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", key, err)
	}
	if len(raw) == size {
		return raw, nil
	}
	decoded, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(raw)))
	if err != nil || len(decoded) != size {
		return nil, fmt.Errorf("%s: %w: %s holds neither %d bytes nor their base64", key, errdefs.ErrInvalidArgument, path, size)
	}
	return decoded, nil
}

// Field is a hexadecimal field of TDX; nil when it is empty. It is valid when Validate has passed.
func (TDX) Field(text string) []byte {
	raw, err := hex.DecodeString(text)
	if err != nil || len(raw) == 0 {
		return nil
	}
	return raw
}

func (c *Config) validateConfidential(fault faultFunc) {
	if legacySEV[c.TEE] {
		fault("tee", "%q is not supported: plain SEV and SEV-ES do not keep the host from changing a guest's memory, and their guests "+
			"cannot attest themselves once they run; use \"snp\"", c.TEE)
		return
	}
	checkEnum(fault, "tee", c.TEE, TEENone, TEESNP, TEETDX)
	h := &c.Hypervisor
	if h.Firmware != "" && h.Transport == TransportSerial {
		fault("hypervisor.transport", "is serial, and firmware may swallow what is written to the serial port: set it to auto or vsock")
	}
	if c.TEE == TEENone {
		return
	}
	if h.Firmware == "" {
		fault("hypervisor.firmware", "is empty, and a confidential guest starts with firmware (OVMF) that its TEE measures")
	}
	if h.Accelerator == AcceleratorTCG {
		fault("hypervisor.accelerator", "is tcg, and a confidential guest needs the processor: set it to kvm")
	}
	switch c.TEE {
	case TEESNP:
		c.SNP.validate(fault)
	case TEETDX:
		c.TDX.validate(fault)
		if h.CPUModel != "" && h.CPUModel != "host" && !strings.HasPrefix(h.CPUModel, "host,") {
			fault("hypervisor.cpu_model", "is %q, and a TDX guest has the host's: leave it empty", h.CPUModel)
		}
	}
}

func (s *SNP) validate(fault faultFunc) {
	switch {
	case s.Policy&policyReserved == 0:
		fault("snp.policy", "%#x lacks bit 17 (%#x), which must be set", s.Policy, policyReserved)
	case s.Policy&policyDebug != 0:
		fault("snp.policy", "%#x has bit 19 (%#x): the host could read the guest's memory", s.Policy, policyDebug)
	case s.Policy&policyMigrate != 0:
		fault("snp.policy", "%#x has bit 18 (%#x): guests do not migrate", s.Policy, policyMigrate)
	}
	if s.IDAuth != "" && s.IDBlock == "" || s.IDBlock != "" && s.IDAuth == "" {
		fault("snp.id_block", "and snp.id_auth belong together, and one is empty")
	}
	if s.AuthorKey && s.IDAuth == "" {
		fault("snp.author_key", "is set, and snp.id_auth, which holds the key, is empty")
	}
	for key, path := range map[string]string{"snp.id_block": s.IDBlock, "snp.id_auth": s.IDAuth} {
		if path != "" && !filepath.IsAbs(path) {
			fault(key, "%q is no absolute path", path)
		}
	}
}

func (t *TDX) validate(fault faultFunc) {
	for key, text := range map[string]string{"tdx.mrowner": t.MROwner, "tdx.mrownerconfig": t.MROwnerConfig} {
		if raw, err := hex.DecodeString(text); text != "" && (err != nil || len(raw) != tdxFieldSize) {
			fault(key, "is not %d bytes in hexadecimal", tdxFieldSize)
		}
	}
	if q := t.QuoteService; q != "" {
		_, _, vsock := q.Vsock()
		if !vsock && !filepath.IsAbs(q.Unix()) {
			fault("tdx.quote_service", "%q is neither unix:/PATH nor vsock:CID:PORT", q)
		}
	}
}
