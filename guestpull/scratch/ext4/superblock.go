package ext4

const (
	superblockOffset = 1024
	superblockSize   = 1024

	// Features that a kernel may ignore: extended attributes, indexed folders, and copies of the superblock only where it
	// says, which is nowhere.
	compatible = 0x8 | 0x20 | 0x200
	// Features that it must know: types in folders, extents.
	incompatible = 0x2 | 0x40
	// Features that it must know to write: few copies of the superblock, large and huge files, many subfolders, large
	// inodes, checksums on metadata.
	readOnlyCompatible = 0x1 | 0x2 | 0x8 | 0x20 | 0x40 | 0x400

	errorsReadOnly = 2
)

// superblock is the disk's first block.
func (l *layout) superblock(o Options) []byte {
	block := make([]byte, blockSize)
	sb := block[superblockOffset:][:superblockSize]
	now := uint32(o.Time.Unix())
	for at, v := range map[int]uint32{
		0x00: l.groups * groupInodes,
		0x04: l.blocks,
		0x0c: l.free(),
		0x10: l.groups*groupInodes - usedInodes,
		0x18: 2, // block size: 1 KiB shifted by
		0x1c: 2, // so is the cluster size
		0x20: groupBlocks,
		0x24: groupBlocks,
		0x28: groupInodes,
		0x30: now, // written
		0x40: now, // checked
		0x4c: 1,   // revision: with features
		0x54: lostInode,
		0x5c: compatible,
		0x60: incompatible,
		0x64: readOnlyCompatible,
		// 0x108 is when it was made; 0x160 says that hashes are of unsigned characters.
		0x108: now,
		0x160: 2,
	} {
		put32(sb, at, v)
	}
	for at, v := range map[int]uint16{
		0x36: 0xffff, // no check after so many mounts
		0x38: 0xef53, // magic
		0x3a: 1,      // clean
		0x3c: errorsReadOnly,
		0x58: inodeSize,
		// 0x15c and 0x15e are the least and the wanted size of what inodes have beyond 128 bytes.
		0x15c: 32,
		0x15e: 32,
	} {
		put16(sb, at, v)
	}
	copy(sb[0x68:], o.UUID[:])
	copy(sb[0x78:0x88], o.Label)
	copy(sb[0xec:], o.HashSeed[:])
	sb[0xfc] = 1  // folders are hashed by half MD4
	sb[0x175] = 1 // checksums are CRC-32C
	put32(sb, 0x3fc, crc(^uint32(0), sb[:0x3fc]))
	return block
}
