package extension

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/containerd/errdefs"
)

// A PC partition table is the end of the disk's first sector: four entries of 16 bytes, and a signature.
const (
	sectorSize   = 512
	tableAt      = 446
	entrySize    = 16
	signatureAt  = 510
	signature    = 0xaa55
	typeLinux    = 0x83
	noOldAddress = "\xfe\xff\xff" // the address by cylinder of what lies beyond them
)

// extent is a partition's place, in bytes.
type extent struct{ start, size int64 }

// partitionTable returns the first sector of a disk with these partitions. OutOfRange: one lies beyond the two tebibytes that such a
// table can describe.
func partitionTable(parts []extent) ([]byte, error) {
	sector := make([]byte, sectorSize)
	binary.LittleEndian.PutUint16(sector[signatureAt:], signature)
	for i, part := range parts {
		if (part.start+part.size)/sectorSize > math.MaxUint32 {
			return nil, fmt.Errorf("partition %d ends beyond two tebibytes: %w", i+1, errdefs.ErrOutOfRange)
		}
		entry := sector[tableAt+i*entrySize:]
		copy(entry[1:], noOldAddress)
		entry[4] = typeLinux
		copy(entry[5:], noOldAddress)
		binary.LittleEndian.PutUint32(entry[8:], uint32(part.start/sectorSize))
		binary.LittleEndian.PutUint32(entry[12:], uint32(part.size/sectorSize))
	}
	return sector, nil
}
