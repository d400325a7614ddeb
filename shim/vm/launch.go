package vm

// Confidential is how a guest is launched so that the host stays out of its memory. One field is set, the others are nil.
type Confidential struct {
	SNP *SNP
	TDX *TDX
}

// SNP launches a guest under AMD SEV-SNP. Firmware, kernel, initrd and command line are part of the launch digest.
type SNP struct {
	Policy uint64
	// HostData is what the guest's reports carry under this name: 32 bytes, or nil for zeros.
	HostData []byte
	// IDBlock (96 bytes) and IDAuth (4096 bytes) bind the launch digest to its owner's signature; both nil for none.
	// AuthorKey says that IDAuth has an author's key.
	IDBlock, IDAuth []byte
	AuthorKey       bool
	// CBitPos is the bit of a guest's address that marks private memory, and ReducedPhysBits by how many bits it shortens
	// addresses.
	CBitPos, ReducedPhysBits uint32
}

// TDX launches a guest under Intel TDX. The fields of 48 bytes are what the guest's reports carry under these names; nil
// stands for zeros.
type TDX struct {
	MRConfigID, MROwner, MROwnerConfig []byte
	// QuoteSocket is the path of the host's quote generation service, or QuoteCID and QuotePort its vsock address; all
	// empty for none.
	QuoteSocket         string
	QuoteCID, QuotePort uint32
}

// Memory is where a VM's memory lies on the host. The zero value is memory of the monitor alone.
type Memory struct {
	// Shared makes it a file that other processes can be given.
	Shared bool
	// HugePageMiB is the size of the host's pages that are set aside for it, 0 for ordinary ones.
	HugePageMiB uint32
}

// Placement binds a VM to NUMA nodes of the host. The zero value is no binding.
type Placement struct {
	// Nodes are their numbers. The VM runs on their processors alone.
	Nodes []int
	// Strict fails the start rather than taking memory of other nodes.
	Strict bool
}
