package sandbox

import (
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"

	"github.com/coffer-project/coffer/proto/initdata"
	"github.com/coffer-project/coffer/shim/config"
	"github.com/coffer-project/coffer/shim/tee"
	"github.com/coffer-project/coffer/shim/vm"
)

const (
	// initdataDisk is the serial of the disk that carries the initdata document, and its file's name.
	initdataDisk = "initdata"
	// paramInitdata tells the guest of a machine without a TEE the digest that the document on the disk must have, for want of
	// anything better: nobody but the host says so. A TEE carries the digest itself, and then the kernel's command line does
	// not, because it is measured and must be the same for all documents.
	paramInitdata = "coffer.initdata_digest"
)

// vmConfig says what the pod's VM is made of, and writes the files that it needs into the state directory. The
// network's cards are for the caller to add.
func (p *Pod) vmConfig(devices []vm.PCIDevice) (vm.Config, error) {
	hypervisor := &p.config.Hypervisor
	vmConfig := vm.Config{
		ID: p.request.ID, StateDir: p.stateDir, NetNS: p.request.NetNS,
		VCPUs: p.pod.VCPUs, MemoryMiB: wholePages(p.pod.MemoryMiB, hypervisor.HugePages.MiB()),
		Memory:    vm.Memory{Shared: hypervisor.MemoryBacking == config.BackingShared, HugePageMiB: hypervisor.HugePages.MiB()},
		Placement: placement(hypervisor, nodesOf(devices)),
		Firmware:  hypervisor.Firmware, Kernel: hypervisor.Kernel, Initrd: hypervisor.Initrd,
		KernelParams: p.config.GuestParams(p.pod.ScratchMiB > 0),
		PCIDevices:   devices,
	}
	document, err := p.initdata()
	if err != nil {
		return vm.Config{}, err
	}
	var sum []byte
	if document != nil {
		var disk vm.Disk
		if sum, disk, err = p.initdataDisk(document); err != nil {
			return vm.Config{}, fmt.Errorf("prepare initdata: %w", err)
		}
		vmConfig.Disks = append(vmConfig.Disks, disk)
	}
	if vmConfig.Confidential, err = tee.Launch(p.platform.TEE, p.config, sum); err != nil {
		return vm.Config{}, fmt.Errorf("prepare a confidential guest: %w", err)
	}
	if vmConfig.Confidential == nil && document != nil {
		vmConfig.KernelParams = append(vmConfig.KernelParams, paramInitdata+"="+p.initdataDigest())
	}
	for _, e := range hypervisor.Extensions {
		vmConfig.Disks = append(vmConfig.Disks, vm.Disk{Serial: e.Serial(), Path: e.Path, ReadOnly: true})
	}
	if p.pod.ScratchMiB > 0 {
		disk, err := p.scratchDisk()
		if err != nil {
			return vm.Config{}, err
		}
		vmConfig.Disks = append(vmConfig.Disks, disk)
	}
	return vmConfig, nil
}

// wholePages rounds a size up to whole pages of pageMiB; 0 stands for small ones.
func wholePages(memoryMiB, pageMiB uint32) uint32 {
	if pageMiB == 0 {
		return memoryMiB
	}
	return (memoryMiB + pageMiB - 1) / pageMiB * pageMiB
}

// placement keeps a VM to the nodes that the configuration names, or else to those that its devices are near to.
func placement(h *config.Hypervisor, near []int) vm.Placement {
	if h.NUMA == config.NUMAOff {
		return vm.Placement{}
	}
	nodes := h.NUMANodes
	if len(nodes) == 0 {
		nodes = near
	}
	return vm.Placement{Nodes: nodes, Strict: h.NUMA == config.NUMAStrict}
}

func (p *Pod) initdataDigest() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.report.initdataDigest
}

// initdata is the pod's own document or the node's default; nil when there is neither.
func (p *Pod) initdata() ([]byte, error) {
	if p.pod.InitdataAnnotation == "" {
		return p.config.Initdata.Document(), nil
	}
	document, err := initdata.DecodeAnnotation(p.pod.InitdataAnnotation)
	if err != nil {
		return nil, fmt.Errorf("pod annotation %s: %w", initdata.Annotation, err)
	}
	return document, nil
}

// initdataDisk writes the disk that carries the document, and returns the document's digest.
func (p *Pod) initdataDisk(document []byte) (sum []byte, disk vm.Disk, err error) {
	algorithm, sum, err := initdata.Digest(document)
	if err != nil {
		return nil, vm.Disk{}, err
	}
	raw, err := initdata.EncodeDisk(document)
	if err != nil {
		return nil, vm.Disk{}, err
	}
	path := filepath.Join(p.stateDir, initdataDisk+".img")
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		return nil, vm.Disk{}, err
	}
	p.mu.Lock()
	p.report.initdataDigest = algorithm + ":" + hex.EncodeToString(sum)
	p.mu.Unlock()
	return sum, vm.Disk{Serial: initdataDisk, Path: path, ReadOnly: true}, nil
}
