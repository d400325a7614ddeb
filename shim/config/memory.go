package config

// MemoryBacking is where the memory of a VM lies on the host. What a TEE keeps private lies elsewhere, in the kernel's care.
type MemoryBacking string

// Kinds of MemoryBacking.
const (
	// BackingPrivate is memory of QEMU alone, which the host backs with transparent huge pages.
	BackingPrivate MemoryBacking = "private"
	// BackingShared is a memory file that other processes can be given, as vhost-user devices need it.
	BackingShared MemoryBacking = "shared"
)

// HugePages is the size of the pages that are set aside on the host for VMs.
type HugePages string

// Sizes of HugePages.
const (
	HugeNone HugePages = "none"
	Huge2M   HugePages = "2M"
	Huge1G   HugePages = "1G"
)

// MiB is the size in MiB, 0 for none.
func (p HugePages) MiB() uint32 { return map[HugePages]uint32{Huge2M: 2, Huge1G: 1024}[p] }

// NUMA says whether a VM keeps to certain NUMA nodes of the host.
type NUMA string

// Kinds of NUMA.
const (
	NUMAOff NUMA = "off"
	// NUMAPrefer takes memory elsewhere when the nodes have none left; processors stay on the nodes.
	NUMAPrefer NUMA = "prefer"
	// NUMAStrict does not.
	NUMAStrict NUMA = "strict"
)

// AcceptMemory is when a confidential guest takes its memory into use.
type AcceptMemory string

// Kinds of AcceptMemory.
const (
	// AcceptLazy accepts memory as it is needed, so that a large guest starts as fast as a small one.
	AcceptLazy AcceptMemory = "lazy"
	// AcceptEager accepts all of it before anything runs.
	AcceptEager AcceptMemory = "eager"
)

// maxNUMANode is beyond what Linux knows on x86.
const maxNUMANode = 1023

func (c *Config) validateMemory(fault faultFunc) {
	h := &c.Hypervisor
	checkEnum(fault, "hypervisor.memory_backing", h.MemoryBacking, BackingPrivate, BackingShared)
	checkEnum(fault, "hypervisor.huge_pages", h.HugePages, HugeNone, Huge2M, Huge1G)
	checkEnum(fault, "hypervisor.numa", h.NUMA, NUMAOff, NUMAPrefer, NUMAStrict)
	checkEnum(fault, "hypervisor.accept_memory", h.AcceptMemory, AcceptLazy, AcceptEager)
	if h.NUMA == NUMAOff && len(h.NUMANodes) > 0 {
		fault("hypervisor.numa_nodes", "are named, and hypervisor.numa is off")
	}
	for _, node := range h.NUMANodes {
		if node < 0 || node > maxNUMANode {
			fault("hypervisor.numa_nodes", "%d is not between 0 and %d", node, maxNUMANode)
		}
	}
	if page := h.HugePages.MiB(); page > 0 && h.DefaultMemoryMiB%page != 0 {
		fault("hypervisor.default_memory_mib", "%d is no multiple of the huge pages' %d MiB", h.DefaultMemoryMiB, page)
	}
}

// GuestParams are the parameters that the shim appends to the kernel's command line for every pod of this configuration. They
// are measured where that line is; scratch tells whether the pod has a scratch disk.
func (c *Config) GuestParams(scratch bool) []string {
	params := append([]string(nil), c.Hypervisor.KernelParams...)
	if c.TEE != TEENone && c.Hypervisor.AcceptMemory == AcceptEager {
		params = append(params, "accept_memory=eager")
	}
	params = append(params, "agent.log="+string(c.Guest.LogLevel))
	for _, e := range c.Hypervisor.Extensions {
		params = append(params, e.param())
	}
	if scratch {
		params = append(params, paramScratch+"="+string(c.Scratch.Protection))
	}
	return params
}

// paramScratch tells the guest that it has a scratch disk, and how to protect it.
const paramScratch = "coffer.scratch"
