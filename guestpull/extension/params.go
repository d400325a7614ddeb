package extension

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/coffer-project/coffer/proto/lazyregexp"
)

// The kernel parameter of an extension is paramPrefix, its name, and paramSuffix.
const (
	paramPrefix = "kata.extension."
	paramSuffix = ".verity_params"
)

// serialPrefix and the name are the serial of the extension's disk, of which virtio has 20 bytes.
const (
	serialPrefix = "extension-"
	maxSerial    = 20
)

// maxImages bounds the extensions of one guest. Each takes some 250 bytes of the kernel command line's 2048.
const maxImages = 8

// Limits of the parameters: the kernel's page bounds a block, and veritysetup a salt.
const (
	hashSize  = 32 // bytes, of SHA-256
	maxSalt   = 256
	minBlock  = 512
	maxBlock  = 4096
	maxBlocks = 1 << 40
)

var imageName = lazyregexp.New(`^[A-Za-z0-9][A-Za-z0-9_-]*$`)

// Image is an extension that the kernel command line promises.
type Image struct {
	// Name is part of the disk's serial and of the place where it is mounted.
	Name string
	// RootHash is the root of the hash tree, and Salt goes before each block that is hashed; both are SHA-256's.
	RootHash, Salt []byte
	// DataBlocks is the number of blocks that are checked, of DataBlockSize bytes each.
	DataBlocks int64
	// DataBlockSize and HashBlockSize are powers of two, in bytes.
	DataBlockSize, HashBlockSize int64
}

// IsParam tells whether a kernel parameter is one of an extension.
func IsParam(name string) bool { return strings.HasPrefix(name, paramPrefix) }

// ParseParam reads one kernel parameter. All five fields are needed; fields that are unknown, missing or given twice, and
// values out of range are errdefs.ErrInvalidArgument.
func ParseParam(name, value string) (Image, error) {
	image := Image{Name: strings.TrimSuffix(strings.TrimPrefix(name, paramPrefix), paramSuffix)}
	if !IsParam(name) || !strings.HasSuffix(name, paramSuffix) || !validName(image.Name) {
		return Image{}, fmt.Errorf("kernel parameter %.64q is not %sNAME%s with a name of at most %d letters, digits, - and _: %w",
			name, paramPrefix, paramSuffix, maxSerial-len(serialPrefix), errdefs.ErrInvalidArgument)
	}
	seen := map[string]bool{}
	for field := range strings.SplitSeq(value, ",") {
		key, text, _ := strings.Cut(field, "=")
		if seen[key] {
			return Image{}, invalid(image.Name, "%s is given twice", key)
		}
		seen[key] = true
		if err := image.set(key, text); err != nil {
			return Image{}, err
		}
	}
	for _, key := range []string{"root_hash", "salt", "data_blocks", "data_block_size", "hash_block_size"} {
		if !seen[key] {
			return Image{}, invalid(image.Name, "%s is missing", key)
		}
	}
	return image, nil
}

func validName(name string) bool {
	return len(name) <= maxSerial-len(serialPrefix) && imageName.MatchString(name)
}

func (i *Image) set(key, text string) (err error) {
	switch key {
	case "root_hash":
		i.RootHash, err = hex.DecodeString(text)
		if err != nil || len(i.RootHash) != hashSize {
			return invalid(i.Name, "root_hash is not %d hexadecimal digits", 2*hashSize)
		}
	case "salt":
		i.Salt, err = hex.DecodeString(text)
		if err != nil || len(i.Salt) > maxSalt {
			return invalid(i.Name, "salt is not hexadecimal digits for at most %d bytes", maxSalt)
		}
	case "data_blocks":
		i.DataBlocks, err = strconv.ParseInt(text, 10, 64)
		if err != nil || i.DataBlocks < 1 || i.DataBlocks > maxBlocks {
			return invalid(i.Name, "data_blocks is not a number from 1 to %d", int64(maxBlocks))
		}
	case "data_block_size":
		return i.setBlockSize(&i.DataBlockSize, key, text)
	case "hash_block_size":
		return i.setBlockSize(&i.HashBlockSize, key, text)
	default:
		return invalid(i.Name, "field %.32q is unknown", key)
	}
	return nil
}

func (i *Image) setBlockSize(to *int64, key, text string) error {
	size, err := strconv.ParseInt(text, 10, 64)
	if err != nil || size < minBlock || size > maxBlock || size&(size-1) != 0 {
		return invalid(i.Name, "%s is not a power of two from %d to %d", key, minBlock, maxBlock)
	}
	*to = size
	return nil
}

func invalid(name, format string, args ...any) error {
	return fmt.Errorf("kernel parameter %s%s%s: %s: %w", paramPrefix, name, paramSuffix, fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
}
