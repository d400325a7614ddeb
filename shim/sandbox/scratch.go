package sandbox

import (
	"fmt"
	"slices"

	"github.com/coffer-project/coffer/shim/device/block"
	"github.com/coffer-project/coffer/shim/vm"
)

const (
	// scratchDisk is the serial of the disk that the guest encrypts for itself.
	scratchDisk = "scratch"
	// featureScratch is what a guest calls itself that makes use of it.
	featureScratch = "coffer-scratch"
)

// scratchDisk makes the disk. Its file has no name: when QEMU has ended, or the machine has, the kernel takes it away.
func (p *Pod) scratchDisk() (vm.Disk, error) {
	conf := p.config.Scratch
	file, err := block.Scratch(conf.Dir, int64(p.pod.ScratchMiB)<<20)
	if err != nil {
		return vm.Disk{}, fmt.Errorf("make scratch disk (scratch.dir): %w", err)
	}
	return vm.Disk{Serial: scratchDisk, File: file, Volatile: true}, nil
}

// noteScratch hears of what the guest is able to do. A guest that does not know of scratch disks, such as a stock Kata
// guest, keeps all in its memory. The caller holds the lock.
func (p *Pod) noteScratch(features []string) {
	if p.pod.ScratchMiB == 0 {
		return
	}
	if p.scratch = slices.Contains(features, featureScratch); !p.scratch {
		p.report.degraded = append(p.report.degraded, "the guest makes no use of the scratch disk, images and volumes are in its memory")
	}
}

// HasScratch tells whether the guest has a scratch disk.
func (p *Pod) HasScratch() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.scratch
}
