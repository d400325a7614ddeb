package ext4

import (
	"encoding/binary"
	"fmt"
	"io"
	"time"

	"github.com/containerd/errdefs"
)

const (
	blockSize      = 4096
	groupBlocks    = 8 * blockSize // one block of bitmap
	inodeSize      = 256
	groupInodes    = 8192 // one for 16 KiB, as mke2fs has it
	tableBlocks    = groupInodes * inodeSize / blockSize
	descriptorSize = 32

	rootInode  = 2
	lostInode  = 11 // the first that is not reserved; fsck wants lost+found
	usedInodes = 11

	// overhead is what each group but the first takes for itself: two bitmaps and a table.
	overhead = 2 + tableBlocks
	// maxBlocks is what block numbers of 32 bits reach: 16 TiB.
	maxBlocks = 1<<32 - groupBlocks
)

// MinSize is the size of the smallest disk that Format takes, in bytes.
const MinSize = 16 << 20

// Options say what is in the superblock.
type Options struct {
	// UUID identifies the file system and is the seed of its checksums, HashSeed that of its folders' hashes. Both are to
	// be random.
	UUID, HashSeed [16]byte
	// Label is its name, of at most 16 bytes.
	Label string
	// Time is when it was made.
	Time time.Time
}

// layout is where things are.
type layout struct {
	blocks, groups    uint32
	descriptorBlocks  uint32
	bitmaps0, inodes0 uint32 // of the first group: the first of its bitmaps, and its table
	rootBlock         uint32
	lostBlock         uint32
	seed              uint32 // of checksums
}

// Format writes an empty file system of size bytes, or a little less, to a disk. It fails with errdefs.ErrInvalidArgument for
// a disk smaller than MinSize. What is above 16 TiB stays unused. The disk's other content does not matter.
func Format(disk io.WriterAt, size int64, o Options) error {
	if size < MinSize {
		return fmt.Errorf("a disk of %d bytes is too small for a file system, %d are needed: %w", size, int64(MinSize), errdefs.ErrInvalidArgument)
	}
	if len(o.Label) > 16 {
		return fmt.Errorf("label %.32q has more than 16 bytes: %w", o.Label, errdefs.ErrInvalidArgument)
	}
	l := plan(size)
	l.seed = crc(^uint32(0), o.UUID[:])
	// The superblock comes last: without it there is no file system.
	for _, step := range []func(io.WriterAt) error{l.writeBitmaps, l.writeInodes, l.writeFolders, l.writeDescriptors} {
		if err := step(disk); err != nil {
			return fmt.Errorf("make file system: %w", err)
		}
	}
	if _, err := disk.WriteAt(l.superblock(o), 0); err != nil {
		return fmt.Errorf("make file system: %w", err)
	}
	return nil
}

// plan lays a disk out.
func plan(size int64) layout {
	blocks := min(size/blockSize, maxBlocks)
	// A last group that has hardly room for its own tables is left out.
	if rest := blocks % groupBlocks; blocks > groupBlocks && rest < 2*overhead {
		blocks -= rest
	}
	l := layout{blocks: uint32(blocks), groups: uint32((blocks + groupBlocks - 1) / groupBlocks)}
	l.descriptorBlocks = (l.groups*descriptorSize + blockSize - 1) / blockSize
	l.bitmaps0 = 1 + l.descriptorBlocks
	l.inodes0 = l.bitmaps0 + 2
	l.rootBlock = l.inodes0 + tableBlocks
	l.lostBlock = l.rootBlock + 1
	return l
}

// tables returns where a group's block bitmap is; its inode bitmap and its table follow.
func (l *layout) tables(group uint32) uint32 {
	if group == 0 {
		return l.bitmaps0
	}
	return group * groupBlocks
}

// used counts the blocks of a group that are taken.
func (l *layout) used(group uint32) uint32 {
	if group == 0 {
		return l.lostBlock + 1
	}
	return overhead
}

// size counts the blocks of a group.
func (l *layout) size(group uint32) uint32 { return min(groupBlocks, l.blocks-group*groupBlocks) }

func (l *layout) free() (n uint32) {
	for group := range l.groups {
		n += l.size(group) - l.used(group)
	}
	return n
}

// blockBitmap is the bitmap of a group. Bits of blocks beyond the disk's end are set.
func (l *layout) blockBitmap(group uint32) []byte {
	bitmap := make([]byte, blockSize)
	setBits(bitmap, 0, l.used(group))
	setBits(bitmap, l.size(group), groupBlocks)
	return bitmap
}

// inodeBitmap is the bitmap of the first group.
func (l *layout) inodeBitmap() []byte {
	bitmap := make([]byte, blockSize)
	setBits(bitmap, 0, usedInodes)
	setBits(bitmap, groupInodes, 8*blockSize)
	return bitmap
}

func setBits(bitmap []byte, from, to uint32) {
	for i := from; i < to; i++ {
		bitmap[i/8] |= 1 << (i % 8)
	}
}

// explicit tells the groups whose block bitmap is on the disk: the first, and the last, of which the kernel could not know
// otherwise where it ends.
func (l *layout) explicit(group uint32) bool { return group == 0 || group == l.groups-1 }

func (l *layout) writeBitmaps(disk io.WriterAt) error {
	for _, group := range []uint32{0, l.groups - 1} {
		if _, err := disk.WriteAt(l.blockBitmap(group), int64(l.tables(group))*blockSize); err != nil {
			return err
		}
	}
	_, err := disk.WriteAt(l.inodeBitmap(), int64(l.bitmaps0+1)*blockSize)
	return err
}

// Flags of a group.
const (
	flagInodesUnused = 1 // neither inode bitmap nor table is initialised
	flagBlocksUnused = 2 // nor is the block bitmap
)

func (l *layout) writeDescriptors(disk io.WriterAt) error {
	table := make([]byte, l.descriptorBlocks*blockSize)
	for group := range l.groups {
		l.describe(table[group*descriptorSize:][:descriptorSize], group)
	}
	_, err := disk.WriteAt(table, blockSize)
	return err
}

// describe fills in one group's descriptor.
func (l *layout) describe(d []byte, group uint32) {
	at := l.tables(group)
	put32(d, 0x00, at)
	put32(d, 0x04, at+1)
	put32(d, 0x08, at+2)
	put16(d, 0x0c, uint16(l.size(group)-l.used(group)))
	freeInodes, flags := uint16(groupInodes), uint16(flagInodesUnused|flagBlocksUnused)
	if l.explicit(group) {
		flags &^= flagBlocksUnused
		put16(d, 0x18, uint16(crc(l.seed, l.blockBitmap(group))))
	}
	if group == 0 {
		freeInodes -= usedInodes
		flags = 0
		put16(d, 0x10, 2) // folders
		put16(d, 0x1a, uint16(crc(l.seed, l.inodeBitmap()[:groupInodes/8])))
	}
	put16(d, 0x0e, freeInodes)
	put16(d, 0x12, flags)
	put16(d, 0x1c, freeInodes) // from the end of the table, never used
	put16(d, 0x1e, uint16(crc(crc(l.seed, le32(group)), d)))
}

func put16(b []byte, at int, v uint16) { binary.LittleEndian.PutUint16(b[at:], v) }
func put32(b []byte, at int, v uint32) { binary.LittleEndian.PutUint32(b[at:], v) }
func le32(v uint32) []byte             { return binary.LittleEndian.AppendUint32(nil, v) }
