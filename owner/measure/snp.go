package measure

import (
	"crypto/sha512"
	"encoding/binary"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/ovmf"
)

// SNPGuest is a guest as QEMU launches it on KVM with sev-snp-guest.
type SNPGuest struct {
	// Firmware is the OVMF image.
	Firmware []byte
	// Kernel makes the digest one of a measured direct boot (kernel-hashes=on): firmware then starts nothing but this kernel with this
	// Initrd and Cmdline. Nil means that no kernel is given to QEMU.
	Kernel, Initrd []byte
	Cmdline        string
	// VCPUs is the number of virtual processors, at least 1.
	VCPUs int
	// CPU is the signature of the processor model that the guest sees; see CPUSignature.
	CPU uint32
	// Features is SEV_FEATURES as KVM sets it: SNPActive, and from a host's debug-swap on DebugSwap, too.
	Features uint64
}

// Bits of SNPGuest.Features (AMD64 Architecture Programmer's Manual, volume 2, table B-4). SNPActive is always set.
const (
	SNPActive uint64 = 1 << 0
	DebugSwap uint64 = 1 << 5
)

// maxVCPUs bounds the work; KVM's own limit is not far from it.
const maxVCPUs = 4096

// The page types of PAGE_INFO (SEV Secure Nested Paging Firmware ABI, section 8.17.2).
const (
	pageNormal  = 1
	pageVMSA    = 2
	pageZero    = 3
	pageSecrets = 5
	pageCPUID   = 6
)

// vmsaAddress is where the firmware believes the pages of the processors' state to be.
const vmsaAddress = 0xfffffffff000

// Digest returns the launch digest, MEASUREMENT of the guest's reports. Files that cannot launch such a guest are InvalidArgument.
func (g SNPGuest) Digest() ([]byte, error) {
	if g.VCPUs < 1 || g.VCPUs > maxVCPUs || g.Features&SNPActive == 0 {
		return nil, fmt.Errorf("SNP guest of %d processors with features %#x cannot be launched: %w", g.VCPUs, g.Features, errdefs.ErrInvalidArgument)
	}
	if g.Kernel == nil && (g.Initrd != nil || g.Cmdline != "") {
		return nil, fmt.Errorf("SNP guest has an initrd or a command line, but no kernel: %w", errdefs.ErrInvalidArgument)
	}
	f, err := ovmf.Parse(g.Firmware)
	if err != nil {
		return nil, err
	}
	sections, err := f.SEVSections()
	if err != nil {
		return nil, err
	}
	var d launchDigest
	d.normal(f.Base(), g.Firmware)
	hashed := false
	for _, s := range sections {
		switch s.Kind {
		case ovmf.SEVMemory, ovmf.SEVSVSMCAA:
			d.empty(pageZero, s)
		case ovmf.SEVSecrets:
			d.empty(pageSecrets, s)
		case ovmf.SEVCPUID:
			d.empty(pageCPUID, s)
		case ovmf.SEVHashes:
			if g.Kernel == nil {
				d.empty(pageZero, s)
				break
			}
			page, err := g.hashesPage(f, s)
			if err != nil {
				return nil, err
			}
			d.normal(s.Address, page)
			hashed = true
		default:
			return nil, fmt.Errorf("firmware has SEV metadata with a section of unknown type %#x: %w", s.Kind, errdefs.ErrInvalidArgument)
		}
	}
	if g.Kernel != nil && !hashed {
		return nil, fmt.Errorf("firmware has no section for the hashes of a kernel: use a build of OvmfPkg/AmdSev: %w", errdefs.ErrInvalidArgument)
	}
	reset, ok := f.ResetVector()
	if !ok && g.VCPUs > 1 {
		return nil, fmt.Errorf("firmware does not say where further processors start: %w", errdefs.ErrInvalidArgument)
	}
	for i := range g.VCPUs {
		entry := uint32(resetVector)
		if i > 0 {
			entry = reset
		}
		d.page(pageVMSA, vmsaAddress, sha512.Sum384(vmsaPage(entry, g.CPU, g.Features)))
	}
	return d[:], nil
}

// launchDigest is the digest that the secure processor keeps while a guest's memory is filled.
type launchDigest [sha512.Size384]byte

// page measures one page: its digest, type and address are hashed together with what was measured before.
func (d *launchDigest) page(kind byte, address uint64, content [sha512.Size384]byte) {
	const size = 0x70
	info := make([]byte, 0, size)
	info = append(info, d[:]...)
	info = append(info, content[:]...)
	info = binary.LittleEndian.AppendUint16(info, size)
	info = append(info, kind, 0, 0, 0, 0, 0) // no migration image, no rights for VMPL 1 to 3
	info = binary.LittleEndian.AppendUint64(info, address)
	*d = sha512.Sum384(info)
}

// normal measures whole pages of data.
func (d *launchDigest) normal(address uint64, data []byte) {
	for at := 0; at < len(data); at += ovmf.PageSize {
		d.page(pageNormal, address+uint64(at), sha512.Sum384(data[at:at+ovmf.PageSize]))
	}
}

// empty measures pages whose content is not.
func (d *launchDigest) empty(kind byte, s ovmf.SEVSection) {
	for i := range s.Pages {
		d.page(kind, s.Address+uint64(i)*ovmf.PageSize, [sha512.Size384]byte{})
	}
}
