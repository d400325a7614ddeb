package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
)

const (
	diskSize = 4 << 30
	sector   = 512
	// partitionStart is where the only partition begins, in bytes.
	partitionStart = 1 << 20
	// rootSignature identifies the disk to the kernel, which names NVMe disks in no certain order.
	rootSignature = 0xc0ffe201
)

// rootUUID is the only partition's name in the kernel's parameter root.
var rootUUID = fmt.Sprintf("%08x-01", rootSignature)

// makeDisk makes a disk with one partition, whose ext4 file system holds the folder's files.
func makeDisk(ctx context.Context, folder, path string) error {
	if err := os.WriteFile(path, partitionTable(), 0o600); err != nil {
		return err
	}
	if err := os.Truncate(path, diskSize); err != nil {
		return err
	}
	return quietly(exec.CommandContext(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-b", "4096", "-O", "^has_journal", "-d", folder,
		"-E", fmt.Sprintf("offset=%d,root_owner=0:0", partitionStart), path, fmt.Sprint((diskSize-partitionStart)/4096)))
}

// partitionOf names the file system on such a disk to debugfs.
func partitionOf(path string) string { return fmt.Sprintf("%s?offset=%d", path, partitionStart) }

// partitionTable is a master boot record with one Linux partition over the rest of the disk.
func partitionTable() []byte {
	table := make([]byte, sector)
	binary.LittleEndian.PutUint32(table[440:], rootSignature)
	entry := table[446:]
	entry[4] = 0x83 // Linux
	binary.LittleEndian.PutUint32(entry[8:], partitionStart/sector)
	binary.LittleEndian.PutUint32(entry[12:], (diskSize-partitionStart)/sector)
	table[510], table[511] = 0x55, 0xaa
	return table
}
