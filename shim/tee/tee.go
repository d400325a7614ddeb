package tee

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/initdata"
	"github.com/coffer-project/coffer/proto/ovmf"
	"github.com/coffer-project/coffer/shim/config"
	"github.com/coffer-project/coffer/shim/vm"
)

// The kernel's switches, and the device by which QEMU reaches AMD's secure processor.
const (
	snpSwitch = "/sys/module/kvm_amd/parameters/sev_snp"
	tdxSwitch = "/sys/module/kvm_intel/parameters/tdx"
	sevDevice = "/dev/sev"
)

// reducedPhysBits is by how many bits a guest's addresses are shorter than the host's: its C-bit. The further bits that the host
// loses (CPUID) are no loss to guests.
const reducedPhysBits = 1

// Launch says how a guest of a configuration is launched, bound to the digest of its initdata document (nil for none). It is nil
// for a configuration without a TEE. It fails with errdefs.ErrFailedPrecondition, naming the cure, when the machine, its settings or
// the firmware cannot start such a guest.
func Launch(host Host, c *config.Config, digest []byte) (*vm.Confidential, error) {
	if c.TEE == config.TEENone {
		return nil, nil
	}
	if err := Check(host, c); err != nil {
		return nil, err
	}
	if c.TEE == config.TEETDX {
		return &vm.Confidential{TDX: launchTDX(&c.TDX, digest)}, nil
	}
	return &vm.Confidential{SNP: launchSNP(host, &c.SNP, digest)}, nil
}

func launchSNP(host Host, c *config.SNP, digest []byte) *vm.SNP {
	block, auth := c.ID()
	return &vm.SNP{
		Policy: c.Policy, HostData: field(digest, initdata.SNPHostData), IDBlock: block, IDAuth: auth, AuthorKey: c.AuthorKey,
		CBitPos: host.SEV().CBitPos, ReducedPhysBits: reducedPhysBits,
	}
}

func launchTDX(c *config.TDX, digest []byte) *vm.TDX {
	t := &vm.TDX{
		MRConfigID: field(digest, initdata.TDXMRConfigID), MROwner: c.Field(c.MROwner), MROwnerConfig: c.Field(c.MROwnerConfig),
		QuoteSocket: c.QuoteService.Unix(),
	}
	t.QuoteCID, t.QuotePort, _ = c.QuoteService.Vsock()
	return t
}

// field is a digest as the TEE's field of size bytes holds it.
func field(digest []byte, size int) []byte {
	if digest == nil {
		return nil
	}
	return initdata.Fit(digest, size)
}

// Check tells whether the machine can launch guests of a configuration; one without a TEE it always can. Errors are as for Launch.
func Check(host Host, c *config.Config) error {
	if c.TEE == config.TEENone {
		return nil
	}
	if err := CheckMachine(host, c.TEE); err != nil {
		return err
	}
	if c.TEE == config.TEETDX {
		if err := checkQuotes(host, &c.TDX); err != nil {
			return err
		}
	}
	return checkFirmware(host, c)
}

// CheckMachine tells whether the machine has a TEE, and has it turned on. Errors are as for Launch.
func CheckMachine(host Host, tee config.TEE) error {
	switch tee {
	case config.TEESNP:
		return checkSNP(host)
	case config.TEETDX:
		return checkTDX(host)
	}
	return nil
}

func checkSNP(host Host) error {
	if !host.SEV().SNP {
		return refuse("this processor has no SEV-SNP, or the machine's firmware hides it: it takes an AMD EPYC of the third generation or later")
	}
	if !switched(host, snpSwitch) {
		return refuse("SEV-SNP is off (%s): turn on SMEE, SNP and the RMP table in the machine's firmware, and boot Linux 6.11 or later", snpSwitch)
	}
	if err := host.Stat(sevDevice); err != nil {
		return refuse("%w: load the kernel module ccp", err)
	}
	return nil
}

func checkTDX(host Host) error {
	if !switched(host, tdxSwitch) {
		return refuse("TDX is off (%s): turn on TDX and TME-MT in the machine's firmware, and boot Linux 6.16 or later with kvm_intel.tdx=1", tdxSwitch)
	}
	return nil
}

// checkQuotes looks for the host's service, without which a guest cannot attest itself.
func checkQuotes(host Host, c *config.TDX) error {
	if path := c.QuoteService.Unix(); path != "" {
		if err := host.Stat(path); err != nil {
			return refuse("quote generation service (tdx.quote_service): %w: start it (Intel's qgsd), or guests cannot attest themselves", err)
		}
	}
	return nil
}

// switched reads a kernel module's boolean parameter.
func switched(host Host, path string) bool {
	raw, err := host.ReadFile(path)
	value := strings.TrimSpace(string(raw))
	return err == nil && (value == "Y" || value == "1")
}

// checkFirmware tells whether the configuration's firmware can start its confidential guests.
func checkFirmware(host Host, c *config.Config) error {
	path := c.Hypervisor.Firmware
	raw, err := host.ReadFile(path)
	if err != nil {
		return refuse("firmware (hypervisor.firmware): %w", err)
	}
	image, err := ovmf.Parse(raw)
	if err == nil && c.TEE == config.TEESNP {
		err = image.CheckSNP()
	} else if err == nil {
		_, err = image.TDXSections()
	}
	if err != nil {
		// The class that counts is that of the refusal; the reason's own says the same of the file.
		return refuse("%s (hypervisor.firmware): %w", path, err)
	}
	return nil
}

func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{errdefs.ErrFailedPrecondition}, args...)...)
}
