package ext4

import (
	"hash/crc32"
	"io"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// crc goes on with a checksum as the kernel's crc32c does, which inverts neither at the start nor at the end.
func crc(seed uint32, data []byte) uint32 { return ^crc32.Update(^seed, castagnoli, data) }

// inodeSeed begins the checksums of an inode of generation 0 and of its folder's blocks.
func (l *layout) inodeSeed(inode uint32) uint32 { return crc(crc(l.seed, le32(inode)), le32(0)) }

// writeInodes writes the first block of the first group's table; the rest is unused.
func (l *layout) writeInodes(disk io.WriterAt) error {
	table := make([]byte, blockSize)
	l.folder(table, rootInode, 0o40755, 3, l.rootBlock)
	l.folder(table, lostInode, 0o40700, 2, l.lostBlock)
	_, err := disk.WriteAt(table, int64(l.inodes0)*blockSize)
	return err
}

// folder fills in the inode of a folder of one block.
func (l *layout) folder(table []byte, inode uint32, mode, links uint16, block uint32) {
	const (
		extentMagic = 0xf30a
		flagExtents = 0x80000
		extraSize   = 32 // what is used beyond the first 128 bytes
	)
	in := table[(inode-1)*inodeSize:][:inodeSize]
	put16(in, 0x00, mode)
	put32(in, 0x04, blockSize)
	put16(in, 0x1a, links)
	put32(in, 0x1c, blockSize/512)
	put32(in, 0x20, flagExtents)
	put16(in, 0x28, extentMagic)
	put16(in, 0x2a, 1) // extents
	put16(in, 0x2c, 4) // of so many that fit
	put16(in, 0x38, 1) // the only one has one block
	put32(in, 0x3c, block)
	put16(in, 0x80, extraSize)
	sum := crc(l.inodeSeed(inode), in)
	put16(in, 0x7c, uint16(sum))
	put16(in, 0x82, uint16(sum>>16))
}

// writeFolders writes the root's and lost+found's only blocks.
func (l *layout) writeFolders(disk io.WriterAt) error {
	root := l.folderBlock(rootInode, []entry{{rootInode, "."}, {rootInode, ".."}, {lostInode, "lost+found"}})
	lost := l.folderBlock(lostInode, []entry{{lostInode, "."}, {rootInode, ".."}})
	_, err := disk.WriteAt(append(root, lost...), int64(l.rootBlock)*blockSize)
	return err
}

// entry is a folder in a folder.
type entry struct {
	inode uint32
	name  string
}

// folderBlock lists entries, the last of which takes all the room there is before the checksum.
func (l *layout) folderBlock(inode uint32, entries []entry) []byte {
	const (
		typeFolder   = 2
		typeChecksum = 0xde
		tail         = blockSize - 12
	)
	block := make([]byte, blockSize)
	at := 0
	for i, e := range entries {
		length := (8 + len(e.name) + 3) &^ 3
		if i == len(entries)-1 {
			length = tail - at
		}
		put32(block, at, e.inode)
		put16(block, at+4, uint16(length))
		block[at+6], block[at+7] = byte(len(e.name)), typeFolder
		copy(block[at+8:], e.name)
		at += length
	}
	put16(block, tail+4, 12)
	block[tail+7] = typeChecksum
	put32(block, tail+8, crc(l.inodeSeed(inode), block[:tail]))
	return block
}
