// Package disk finds the disks that the host plugs into the running guest, and those of the NVMe devices that it passes through. The
// host says at which PCI address one is, and nothing else of it is believed: it must be a virtio disk, or an NVMe device, behind a
// bridge, where none of the guest's own devices are. What is on it is the host's and the container's business.
package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/guestpull/uevent"
)

// addressPattern is a PCI address in Kata's form: the slot of a bridge on the root bus, and the slot behind it.
var addressPattern = regexp.MustCompile(`^([01][0-9a-f])/([01][0-9a-f])$`)

const (
	// bridgeClass is the class of PCI bridges as sysfs shows it, without the programming interface.
	bridgeClass = "0x0604"
	// virtioDisk is the virtio device type of disks.
	virtioDisk = 2
)

// Disk is a disk of the guest.
type Disk struct {
	Major, Minor int64
	// ReadOnly holds when the host does not let the guest write to it.
	ReadOnly bool
}

// CheckAddress fails with errdefs.ErrInvalidArgument unless the address may be one of a plugged disk.
func CheckAddress(address string) error {
	if !addressPattern.MatchString(address) {
		return fmt.Errorf("disk address %.32q: two slots such as 1e/01 are needed: %w", address, errdefs.ErrInvalidArgument)
	}
	return nil
}

// Finder looks for disks in the kernel's device tree.
type Finder struct {
	// root is the folder of the PCI root bus.
	root    string
	nodes   string // the folder of device nodes
	blocks  string // the folder of all block devices
	timeout time.Duration
}

// New returns a Finder that gives up after timeout.
func New(timeout time.Duration) *Finder {
	return &Finder{root: "/sys/devices/pci0000:00", nodes: "/dev", blocks: "/sys/class/block", timeout: timeout}
}

// Find waits for the disk at an address. It fails with errdefs.ErrInvalidArgument when the address cannot be one, with
// errdefs.ErrFailedPrecondition when something else is there, and with errdefs.ErrNotFound when nothing has appeared in
// time.
func (f *Finder) Find(ctx context.Context, address string) (Disk, error) {
	if err := CheckAddress(address); err != nil {
		return Disk{}, err
	}
	return wait(ctx, f.timeout, address, f.look)
}

// wait looks now and after every device event, until something is found, or is wrong, or the time is over.
func wait[T any](ctx context.Context, timeout time.Duration, address string, look func(string) (T, error)) (none T, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	events, err := uevent.Open()
	if err != nil {
		return none, fmt.Errorf("watch for disk %s: %w", address, err)
	}
	defer events.Close()
	for {
		found, err := look(address)
		if err == nil {
			return found, nil
		}
		if !errdefs.IsNotFound(err) {
			return none, err
		}
		if waitErr := events.Wait(ctx); waitErr != nil {
			return none, fmt.Errorf("wait for a disk (%s, kernel parameter agent.hotplug_timeout): %w", timeout, errors.Join(waitErr, err))
		}
	}
}

// look looks once. NotFound: there is no disk yet.
func (f *Finder) look(address string) (Disk, error) {
	parts := addressPattern.FindStringSubmatch(address)
	bridge := filepath.Join(f.root, "0000:00:"+parts[1]+".0")
	class, err := read(filepath.Join(bridge, "class"))
	if err != nil {
		return Disk{}, notYet(address, err)
	}
	if !strings.HasPrefix(class, bridgeClass) {
		return Disk{}, wrong(address, "slot %s of the root bus holds no bridge", parts[1])
	}
	bus, err := only(filepath.Join(bridge, "pci_bus", "*"))
	if err != nil {
		return Disk{}, notYet(address, err)
	}
	device := filepath.Join(bridge, filepath.Base(bus)+":"+parts[2]+".0")
	virtio, err := only(filepath.Join(device, "virtio*"))
	if err != nil {
		return Disk{}, notYet(address, err)
	}
	kind, err := read(filepath.Join(virtio, "device"))
	if err != nil {
		return Disk{}, notYet(address, err)
	}
	if n, err := strconv.ParseUint(kind, 0, 32); err != nil || n != virtioDisk {
		return Disk{}, wrong(address, "a virtio device of type %.16q is there, no disk", kind)
	}
	block, err := only(filepath.Join(virtio, "block", "*"))
	if err != nil {
		return Disk{}, notYet(address, err)
	}
	disk, err := describe(address, block)
	if err != nil {
		return Disk{}, err
	}
	return disk, opens(address, filepath.Join(f.nodes, filepath.Base(block)))
}

// opens fails as long as a disk cannot be opened: the kernel shows it a moment before, and its event comes after.
func opens(address, node string) error {
	f, err := os.Open(node)
	if errors.Is(err, syscall.ENXIO) {
		err = os.ErrNotExist
	}
	if err != nil {
		return notYet(address, err)
	}
	return f.Close()
}

// describe reads a disk's number, and whether it may be written.
func describe(address, block string) (Disk, error) {
	number, err := read(filepath.Join(block, "dev"))
	if err != nil {
		return Disk{}, notYet(address, err)
	}
	readOnly, err := read(filepath.Join(block, "ro"))
	if err != nil {
		return Disk{}, notYet(address, err)
	}
	major, minor, _ := strings.Cut(number, ":")
	disk := Disk{ReadOnly: readOnly != "0"}
	if disk.Major, err = strconv.ParseInt(major, 10, 32); err == nil {
		disk.Minor, err = strconv.ParseInt(minor, 10, 32)
	}
	if err != nil {
		return Disk{}, wrong(address, "it has number %.32q", number)
	}
	return disk, nil
}

// only returns the one file that matches.
func only(pattern string) (string, error) {
	found, err := filepath.Glob(pattern)
	if err != nil {
		return "", err
	}
	if len(found) != 1 {
		return "", os.ErrNotExist
	}
	return found[0], nil
}

func read(name string) (string, error) {
	text, err := os.ReadFile(name)
	return strings.TrimSpace(string(text)), err
}

// notYet tells a file that is missing from one that cannot be read.
func notYet(address string, err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("disk %s: %w", address, errdefs.ErrNotFound)
	}
	return fmt.Errorf("look for disk %s: %w", address, err)
}

func wrong(address, format string, args ...any) error {
	return fmt.Errorf("disk %s: "+format+": %w", append(append([]any{address}, args...), errdefs.ErrFailedPrecondition)...)
}
