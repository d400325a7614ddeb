package scratch

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/guestpull/scratch/devmapper"
	"github.com/coffer-project/coffer/guestpull/scratch/ext4"
)

// Protection is what the disk's content is protected from.
type Protection string

// The protections, see the package. None means that there is no scratch disk.
const (
	None          Protection = ""
	Encrypted     Protection = "encrypted"
	Authenticated Protection = "authenticated"
)

// names of the devices that are made.
const (
	cryptName     = "scratch"
	integrityName = "scratch-tags"
)

// sector is the unit of encryption in bytes, and the file system's block: what is checked or garbled as one.
const sector = 4096

// Open finds the scratch disk, encrypts it with a new key, and mounts an empty file system at dir, which it makes. It fails
// with errdefs.ErrNotFound when there is no such disk and with errdefs.ErrFailedPrecondition when it cannot serve. A disk
// that was opened stays so until the machine ends.
func Open(ctx context.Context, protection Protection, dir string) error {
	start := time.Now()
	disk, err := find(sysBlock)
	if err == nil {
		err = open(disk, protection, dir)
	}
	if err != nil {
		return fmt.Errorf("scratch disk: %w", err)
	}
	log.G(ctx).WithFields(log.Fields{
		"mib": disk.size >> 20, "protection": protection, "t_scratch": time.Since(start),
	}).Info("scratch disk is ready")
	return nil
}

// open makes the devices and the file system. What it has made of them when it fails is lost with the machine, whose
// containers cannot start then.
func open(disk disk, protection Protection, dir string) error {
	if disk.readOnly {
		return fmt.Errorf("the host does not let the guest write to it: %w", errdefs.ErrFailedPrecondition)
	}
	mapper, err := devmapper.Open()
	if err != nil {
		return err
	}
	defer mapper.Close()
	var node string
	switch protection {
	case Encrypted:
		node, err = encrypt(mapper, disk)
	case Authenticated:
		node, err = authenticate(mapper, disk)
	default:
		err = fmt.Errorf("protection %.32q is neither %s nor %s: %w", protection, Encrypted, Authenticated, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return err
	}
	if err := format(node); err != nil {
		return err
	}
	return mount(node, protection, dir)
}

// encrypt lays dm-crypt over the disk. What the file system gives up is given back to the host, which thus learns how full
// the disk is; see the package.
func encrypt(mapper *devmapper.Mapper, disk disk) (string, error) {
	params, err := withKey("aes-xts-plain64 %s 0 %s 0 3 allow_discards sector_size:4096 iv_large_sectors", 64, disk.node)
	if err != nil {
		return "", err
	}
	return mapper.Create(cryptName, devmapper.Table{Target: "crypt", Sectors: disk.size / sector * sector / devmapper.SectorSize, Params: params})
}

// withKey puts a new random key of size bytes into the parameters of a crypt table, in hexadecimal, as the kernel wants it.
func withKey(format string, size int, node string) ([]byte, error) {
	key := make([]byte, size)
	defer clear(key)
	if _, err := rand.Read(key); err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	return fmt.Appendf(nil, format, hexKey(key), node), nil
}

// hexKey prints as hexadecimal without leaving copies in strings.
type hexKey []byte

// Format implements fmt.Formatter.
func (k hexKey) Format(f fmt.State, _ rune) {
	const digits = "0123456789abcdef"
	for _, b := range k {
		_, _ = f.Write([]byte{digits[b>>4], digits[b&15]}) // into memory
	}
}

// format makes the file system.
func format(node string) (retErr error) {
	device, err := os.OpenFile(node, os.O_RDWR|unix.O_EXCL|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { retErr = errors.Join(retErr, device.Close()) }()
	size, err := device.Seek(0, 2)
	if err != nil {
		return fmt.Errorf("find size of %s: %w", node, err)
	}
	options := ext4.Options{Label: "scratch", Time: time.Now()}
	for _, random := range [][]byte{options.UUID[:], options.HashSeed[:]} {
		if _, err := rand.Read(random); err != nil {
			return fmt.Errorf("make identifiers: %w", err)
		}
	}
	if err := ext4.Format(device, size, options); err != nil {
		return err
	}
	if err := device.Sync(); err != nil {
		return fmt.Errorf("make file system: the host does not store what is written: %w", err)
	}
	return nil
}

// mountOptions of the file system. Nothing has to survive the machine, so nothing waits for the host's disk; what the host
// damages stops the file system, not the machine; tables that the kernel does not need stay unwritten.
const mountOptions = "errors=remount-ro,nobarrier,noinit_itable"

// mount mounts the file system without devices and set-uid programs: containers get theirs by mounts of their own.
func mount(node string, protection Protection, dir string) error {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return fmt.Errorf("make mount point: %w", err)
	}
	options := mountOptions
	switch protection {
	case Encrypted:
		options += ",discard"
	case Authenticated:
		// What was never written has no tag, and to read it ahead of time would be an error.
		options += ",inode_readahead_blks=0"
	}
	if err := unix.Mount(node, dir, "ext4", unix.MS_NODEV|unix.MS_NOSUID, options); err != nil {
		return fmt.Errorf("mount file system: %w", err)
	}
	if err := os.Chmod(dir, 0o711); err != nil { // users of containers walk through it
		return fmt.Errorf("open mount point: %w", err)
	}
	return os.Remove(dir + "/lost+found") // nobody will look there
}
