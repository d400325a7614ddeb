package disk

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"
)

var (
	// passedPattern is the way to a PCI function behind one bridge, in Kata's form: slot of the bridge and of the device, each with a
	// function other than 0 after a dot.
	passedPattern = regexp.MustCompile(`^([01][0-9a-f](?:\.[1-7])?)/([01][0-9a-f](?:\.[1-7])?)$`)
	// namespacePattern is how the NVMe driver calls a disk. With paths (c0) in the name it is one of several ways to the disk without.
	namespacePattern = regexp.MustCompile(`^(nvme[0-9]+)(?:c[0-9]+)?(n[0-9]+)$`)
)

// nvmeClass is the class of NVMe controllers as sysfs shows it.
const nvmeClass = "0x010802"

// CheckPassed fails with errdefs.ErrInvalidArgument unless the address may be one of a device that the host has passed through.
func CheckPassed(address string) error {
	if !passedPattern.MatchString(address) {
		return fmt.Errorf("address %.32q of a passed-through device: two slots such as 10/00 or 10.1/00 are needed: %w", address, errdefs.ErrInvalidArgument)
	}
	return nil
}

// FindPassed waits for the passed-through device at an address and returns its disks by their names, as in nvme0n1. Only NVMe devices
// have any: for another it returns none. It fails as Find does.
func (f *Finder) FindPassed(ctx context.Context, address string) (map[string]Disk, error) {
	if err := CheckPassed(address); err != nil {
		return nil, err
	}
	return wait(ctx, f.timeout, address, f.lookPassed)
}

// lookPassed looks once. NotFound: the device, or a disk of it, is not there yet.
func (f *Finder) lookPassed(address string) (map[string]Disk, error) {
	parts := passedPattern.FindStringSubmatch(address)
	bridge := filepath.Join(f.root, "0000:00:"+function(parts[1]))
	bus, err := only(filepath.Join(bridge, "pci_bus", "*"))
	if err != nil {
		return nil, notYet(address, err)
	}
	device := filepath.Join(bridge, filepath.Base(bus)+":"+function(parts[2]))
	class, err := read(filepath.Join(device, "class"))
	if err != nil {
		return nil, notYet(address, err)
	}
	if class != nvmeClass {
		return nil, nil
	}
	namespaces, err := filepath.Glob(filepath.Join(device, "nvme/nvme*/nvme*n*"))
	if err != nil {
		return nil, err
	}
	disks := map[string]Disk{}
	for _, path := range namespaces {
		match := namespacePattern.FindStringSubmatch(filepath.Base(path))
		if match == nil {
			continue
		}
		name := match[1] + match[2]
		if disks[name], err = describe(address, filepath.Join(f.blocks, name)); err != nil {
			return nil, err
		}
		if err := opens(address, filepath.Join(f.nodes, name)); err != nil {
			return nil, err
		}
	}
	if len(disks) == 0 {
		return nil, notYet(address, os.ErrNotExist)
	}
	return disks, nil
}

// function completes a slot to a function.
func function(slot string) string {
	if strings.Contains(slot, ".") {
		return slot
	}
	return slot + ".0"
}
