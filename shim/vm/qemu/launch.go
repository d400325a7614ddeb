package qemu

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/shim/vm"
)

// The ids of the objects that the machine refers to.
const (
	teeID    = "tee"
	memoryID = "ram"
)

// Sizes of the fields of a confidential guest, in bytes.
const (
	hostDataSize = 32
	idBlockSize  = 96
	idAuthSize   = 4096
	mrSize       = 48
	maxCBitPos   = 63
)

// machineOptions are those of -machine that not every guest has.
func (m machine) machineOptions() string {
	options := ""
	if m.ownMemory() {
		options += ",memory-backend=" + memoryID
	}
	if m.confidential != nil {
		options += ",confidential-guest-support=" + teeID
	}
	return options
}

// accel is the value of -accel. The interrupt controller of a confidential guest must not be all in the host's kernel.
func (m machine) accel() string {
	if m.confidential != nil {
		return string(m.accelerator) + ",kernel-irqchip=split"
	}
	return string(m.accelerator)
}

// ownMemory tells whether the memory needs an object of its own; otherwise QEMU makes what its machine needs.
func (m machine) ownMemory() bool {
	return m.memory.Shared || m.memory.HugePageMiB > 0 || len(m.placement.Nodes) > 0
}

// memoryBackend is QEMU's object of memory (QEMU, qapi/qom.json: MemoryBackendProperties and MemoryBackendMemfdProperties).
type memoryBackend struct {
	Type     string `json:"qom-type"`
	ID       string `json:"id"`
	Size     uint64 `json:"size"`
	Share    bool   `json:"share"`
	Merge    bool   `json:"merge"`
	Dump     bool   `json:"dump"`
	Huge     bool   `json:"hugetlb,omitempty"`
	HugeSize uint64 `json:"hugetlbsize,omitempty"`
	Nodes    []int  `json:"host-nodes,omitempty"`
	Policy   string `json:"policy,omitempty"`
}

// backend is the object of the memory that the host can see. For what is private to a TEE QEMU itself asks the kernel
// (guest_memfd).
func (m machine) backend() []string {
	if !m.ownMemory() {
		return nil
	}
	b := memoryBackend{
		Type: "memory-backend-ram", ID: memoryID, Size: uint64(m.memoryMiB) << 20, Share: m.memory.Shared,
		HugeSize: uint64(m.memory.HugePageMiB) << 20, Nodes: m.placement.Nodes,
	}
	if m.memory.Shared || m.memory.HugePageMiB > 0 {
		// Huge pages of a private mapping would be reserved twice, for the file and for its copy.
		b.Type, b.Share, b.Huge = typeMemfd, true, m.memory.HugePageMiB > 0
	}
	if len(b.Nodes) > 0 {
		b.Policy = "preferred"
		if m.placement.Strict {
			b.Policy = "bind"
		}
	}
	return []string{"-object", object(b)}
}

// object is the value of -object in JSON, in which QEMU reads lists and addresses as they are. It holds numbers, texts and
// booleans only.
func object(properties any) string {
	raw, _ := json.Marshal(properties)
	return string(raw)
}

// tee is the object by which the guest is launched confidentially.
func (m machine) tee() []string {
	if m.confidential == nil {
		return nil
	}
	if m.confidential.TDX != nil {
		return []string{"-object", object(tdxObject(m.confidential.TDX))}
	}
	return []string{"-object", object(snpObject(m.confidential.SNP))}
}

// sevSNPGuest is QEMU's object of that name (QEMU, qapi/qom.json: SevSnpGuestProperties).
type sevSNPGuest struct {
	Type            string `json:"qom-type"`
	ID              string `json:"id"`
	CBitPos         uint32 `json:"cbitpos"`
	ReducedPhysBits uint32 `json:"reduced-phys-bits"`
	Policy          uint64 `json:"policy"`
	// KernelHashes makes QEMU hand firmware the hashes of kernel, initrd and command line, in a page that is measured.
	KernelHashes bool   `json:"kernel-hashes"`
	HostData     []byte `json:"host-data,omitempty"`
	IDBlock      []byte `json:"id-block,omitempty"`
	IDAuth       []byte `json:"id-auth,omitempty"`
	AuthorKey    bool   `json:"author-key-enabled,omitempty"`
}

func snpObject(s *vm.SNP) *sevSNPGuest {
	return &sevSNPGuest{
		Type: typeSNP, ID: teeID, CBitPos: s.CBitPos, ReducedPhysBits: s.ReducedPhysBits, Policy: s.Policy, KernelHashes: true,
		HostData: s.HostData, IDBlock: s.IDBlock, IDAuth: s.IDAuth, AuthorKey: s.AuthorKey,
	}
}

// tdxGuest is QEMU's object of that name (QEMU, qapi/qom.json: TdxGuestProperties). Linux guests refuse to run unless accesses to
// memory that they have not accepted are faults instead of exceptions.
type tdxGuest struct {
	Type          string        `json:"qom-type"`
	ID            string        `json:"id"`
	SeptVEDisable bool          `json:"sept-ve-disable"`
	MRConfigID    []byte        `json:"mrconfigid,omitempty"`
	MROwner       []byte        `json:"mrowner,omitempty"`
	MROwnerConfig []byte        `json:"mrownerconfig,omitempty"`
	QuoteService  *quoteService `json:"quote-generation-socket,omitempty"`
}

// quoteService is QEMU's SocketAddress (QEMU, qapi/sockets.json), whose numbers are texts.
type quoteService struct {
	Type string `json:"type"`
	Path string `json:"path,omitempty"`
	CID  string `json:"cid,omitempty"`
	Port string `json:"port,omitempty"`
}

func tdxObject(t *vm.TDX) *tdxGuest {
	guest := &tdxGuest{
		Type: typeTDX, ID: teeID, SeptVEDisable: true, MRConfigID: t.MRConfigID, MROwner: t.MROwner, MROwnerConfig: t.MROwnerConfig,
	}
	switch {
	case t.QuoteSocket != "":
		guest.QuoteService = &quoteService{Type: "unix", Path: t.QuoteSocket}
	case t.QuotePort != 0:
		guest.QuoteService = &quoteService{
			Type: "vsock", CID: strconv.FormatUint(uint64(t.QuoteCID), 10), Port: strconv.FormatUint(uint64(t.QuotePort), 10),
		}
	}
	return guest
}

// checkLaunch returns the faults of what a VM is launched with.
func checkLaunch(config vm.Config) (faults []error) {
	need := func(ok bool, format string, args ...any) {
		if !ok {
			faults = append(faults, fmt.Errorf("%w: "+format, append([]any{errdefs.ErrInvalidArgument}, args...)...))
		}
	}
	sized := func(what string, value []byte, size int) {
		need(len(value) == 0 || len(value) == size, "%s of %d bytes instead of %d", what, len(value), size)
	}
	page := config.Memory.HugePageMiB
	need(page == 0 || config.MemoryMiB%max(page, 1) == 0, "%d MiB of memory are no multiple of the huge pages' %d MiB", config.MemoryMiB, page)
	need(!strings.ContainsAny(config.Firmware, "\n\x00"), "firmware %q", config.Firmware)
	c := config.Confidential
	if c == nil {
		return faults
	}
	need(config.Firmware != "", "a confidential guest without firmware")
	need((c.SNP == nil) != (c.TDX == nil), "a confidential guest of no TEE, or of two")
	if s := c.SNP; s != nil {
		sized("host data", s.HostData, hostDataSize)
		sized("id block", s.IDBlock, idBlockSize)
		sized("id authentication", s.IDAuth, idAuthSize)
		need((s.IDBlock == nil) == (s.IDAuth == nil), "id block and its authentication belong together")
		need(s.CBitPos > 0 && s.CBitPos <= maxCBitPos && s.ReducedPhysBits > 0, "C-bit %d, addresses %d bits shorter", s.CBitPos, s.ReducedPhysBits)
	}
	if t := c.TDX; t != nil {
		sized("mrconfigid", t.MRConfigID, mrSize)
		sized("mrowner", t.MROwner, mrSize)
		sized("mrownerconfig", t.MROwnerConfig, mrSize)
	}
	return faults
}
