package scratch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/guestpull/scratch/devmapper"
)

// tagSize is what a sector needs besides its content: 16 bytes of authentication tag and 12 of a random nonce.
const tagSize = 28

// authenticate lays dm-integrity over the disk, which finds places for the tags, and dm-crypt over that. Nothing has to
// survive a crash, so that nothing is written twice, to a journal: mode D.
func authenticate(mapper *devmapper.Mapper, disk disk) (string, error) {
	if err := clearSuperblock(disk.node); err != nil {
		return "", err
	}
	table := func(sectors int64) devmapper.Table {
		return devmapper.Table{Target: "integrity", Sectors: sectors, Params: fmt.Appendf(nil, "%s 0 %d D 2 block_size:%d journal_sectors:8", disk.node, tagSize, sector)}
	}
	// With the smallest size the kernel lays the disk out and writes down how much of it is for content.
	if _, err := mapper.Create(integrityName, table(sector/devmapper.SectorSize)); err != nil {
		return "", err
	}
	sectors, err := provided(disk)
	if err != nil {
		return "", err
	}
	if err := mapper.Remove(integrityName); err != nil {
		return "", err
	}
	node, err := mapper.Create(integrityName, table(sectors))
	if err != nil {
		return "", err
	}
	params, err := withKey("capi:gcm(aes)-random %s 0 %s 0 2 integrity:28:aead sector_size:4096", 32, node)
	if err != nil {
		return "", err
	}
	return mapper.Create(cryptName, devmapper.Table{Target: "crypt", Sectors: sectors, Params: params})
}

// clearSuperblock lets dm-integrity start anew.
func clearSuperblock(node string) (retErr error) {
	device, err := os.OpenFile(node, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() { retErr = errors.Join(retErr, device.Close()) }()
	if _, err := device.WriteAt(make([]byte, sector), 0); err != nil {
		return fmt.Errorf("clear the disk's head: %w", err)
	}
	if err := device.Sync(); err != nil {
		return fmt.Errorf("clear the disk's head: %w", err)
	}
	return nil
}

// provided reads how many sectors dm-integrity has for content. The host may have changed that: a wrong size is refused here
// or by the kernel, and a smaller one leaves room unused.
func provided(disk disk) (int64, error) {
	device, err := os.Open(disk.node)
	if err != nil {
		return 0, err
	}
	defer device.Close()
	head := make([]byte, sector)
	if _, err := io.ReadFull(device, head); err != nil {
		return 0, fmt.Errorf("read the disk's head: %w", err)
	}
	return parseSuperblock(head, disk.size)
}

// parseSuperblock reads struct superblock of the kernel's dm-integrity.c.
func parseSuperblock(head []byte, size int64) (int64, error) {
	const unit = sector / devmapper.SectorSize
	if len(head) < 24 || string(head[:8]) != "integrt\x00" {
		return 0, fmt.Errorf("the disk's head is not what was written: %w", errdefs.ErrFailedPrecondition)
	}
	sectors := binary.LittleEndian.Uint64(head[16:])
	if sectors < unit || sectors > uint64(size)/devmapper.SectorSize {
		return 0, fmt.Errorf("the disk's head speaks of %d sectors: %w", sectors, errdefs.ErrFailedPrecondition)
	}
	return int64(sectors / unit * unit), nil
}
