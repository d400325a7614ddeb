package sandbox

import (
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/coffer-project/coffer/proto/initdata"
	"github.com/coffer-project/coffer/shim/vm"
)

const (
	// initdataDisk is the serial of the disk that carries the initdata document, and its file's name.
	initdataDisk = "initdata"
	// paramInitdata tells the guest the digest that the document on the disk must have. On a machine without a TEE
	// this is all that binds the document; on one with a TEE the launch measurement does, and the guest compares both.
	paramInitdata = "coffer.initdata_digest"
	paramLog      = "agent.log"
)

// vmConfig says what the pod's VM is made of, and writes the files that it needs into the state directory. The
// network's cards are for the caller to add.
func (p *Pod) vmConfig() (vm.Config, error) {
	hypervisor := p.config.Hypervisor
	params := slices.Clone(hypervisor.KernelParams)
	params = append(params, paramLog+"="+string(p.config.Guest.LogLevel))
	vmConfig := vm.Config{
		ID: p.request.ID, StateDir: p.stateDir, NetNS: p.request.NetNS,
		VCPUs: p.pod.VCPUs, MemoryMiB: p.pod.MemoryMiB,
		Kernel: hypervisor.Kernel, Initrd: hypervisor.Initrd,
	}
	document, err := p.initdata()
	if err != nil {
		return vm.Config{}, err
	}
	if document != nil {
		param, disk, err := p.initdataDisk(document)
		if err != nil {
			return vm.Config{}, fmt.Errorf("prepare initdata: %w", err)
		}
		params = append(params, param)
		vmConfig.Disks = append(vmConfig.Disks, disk)
	}
	if p.pod.ScratchMiB > 0 {
		param, disk, err := p.scratchDisk()
		if err != nil {
			return vm.Config{}, err
		}
		params = append(params, param)
		vmConfig.Disks = append(vmConfig.Disks, disk)
	}
	vmConfig.KernelParams = params
	return vmConfig, nil
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

func (p *Pod) initdataDisk(document []byte) (param string, disk vm.Disk, err error) {
	algorithm, sum, err := initdata.Digest(document)
	if err != nil {
		return "", vm.Disk{}, err
	}
	raw, err := initdata.EncodeDisk(document)
	if err != nil {
		return "", vm.Disk{}, err
	}
	path := filepath.Join(p.stateDir, initdataDisk+".img")
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		return "", vm.Disk{}, err
	}
	digest := algorithm + ":" + hex.EncodeToString(sum)
	p.mu.Lock()
	p.report.initdataDigest = digest
	p.mu.Unlock()
	return paramInitdata + "=" + digest, vm.Disk{Serial: initdataDisk, Path: path, ReadOnly: true}, nil
}
