package extension

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"

	"github.com/containerd/errdefs"
	"github.com/containerd/go-dmverity/pkg/verity"
)

// blockSize is that of data and of the hash tree, in bytes: the kernel's page.
const blockSize = 4096

// align is where partitions start, as partitioning tools have it, in bytes.
const align = 1 << 20

// An EROFS superblock starts at superblockAt with superblockMagic.
const (
	superblockAt    = 1024
	superblockMagic = "\xe2\xe1\xf5\xe0"
)

// namePattern is what a virtio disk's serial has room for after "extension-".
var namePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,9}$`)

// Pack writes the image of the extension called name to the file out: an EROFS file system and its hash tree. It returns the
// kernel parameter by which a guest checks and mounts it. InvalidArgument: the name, or the file is no EROFS.
func Pack(ctx context.Context, name, erofs, out string) (param string, retErr error) {
	if !namePattern.MatchString(name) {
		return "", fmt.Errorf("extension name %q: 1 to 10 letters, digits, - and _ are possible: %w", name, errdefs.ErrInvalidArgument)
	}
	data, size, err := openData(erofs)
	if err != nil {
		return "", err
	}
	defer data.Close()
	salt, err := contentSum(ctx, data)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", erofs, err)
	}
	dir, err := os.MkdirTemp(filepath.Dir(out), ".extension")
	if err != nil {
		return "", err
	}
	defer func() { retErr = errors.Join(retErr, os.RemoveAll(dir)) }()

	tree := filepath.Join(dir, "tree")
	if err := os.WriteFile(tree, nil, 0o600); err != nil {
		return "", err
	}
	params := verity.DefaultParams()
	params.DataBlockSize, params.HashBlockSize, params.DataBlocks = blockSize, blockSize, uint64(size/blockSize)
	params.Salt, params.SaltSize, params.NoSuperblock = salt, uint16(len(salt)), true
	root, err := verity.Create(&params, erofs, tree)
	if err != nil {
		return "", fmt.Errorf("make hash tree of %s: %w", erofs, err)
	}
	whole := filepath.Join(dir, "image")
	if err := writeImage(ctx, whole, erofs, tree); err != nil {
		return "", err
	}
	if err := os.Rename(whole, out); err != nil {
		return "", err
	}
	return fmt.Sprintf("kata.extension.%s.verity_params=root_hash=%x,salt=%x,data_blocks=%d,data_block_size=%d,hash_block_size=%d",
		name, root, salt, params.DataBlocks, blockSize, blockSize), nil
}

// openData opens the file system and looks whether it is one that guests mount.
func openData(erofs string) (*os.File, int64, error) {
	f, err := os.Open(erofs)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	head := make([]byte, superblockAt+len(superblockMagic))
	_, err = io.ReadFull(f, head)
	if err != nil || string(head[superblockAt:]) != superblockMagic || info.Size()%blockSize != 0 {
		return nil, 0, errors.Join(fmt.Errorf("%s is no EROFS file system in whole blocks of %d bytes; make one with mkfs.erofs: %w",
			erofs, blockSize, errdefs.ErrInvalidArgument), f.Close())
	}
	return f, info.Size(), nil
}

// contentSum is the salt: another one for every content, and the same for the same.
func contentSum(ctx context.Context, f *os.File) ([]byte, error) {
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(reader{ctx, f}, 0, 1<<62)); err != nil {
		return nil, err
	}
	return h.Sum(nil), nil
}

// reader ends with its context.
type reader struct {
	ctx  context.Context
	file *os.File
}

// ReadAt implements io.ReaderAt.
func (r reader) ReadAt(p []byte, at int64) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.file.ReadAt(p, at)
}

// writeImage puts the parts into partitions, one after the other.
func writeImage(ctx context.Context, image string, parts ...string) (retErr error) {
	out, err := os.OpenFile(image, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer func() { retErr = errors.Join(retErr, out.Close()) }()
	at := int64(align)
	var table []extent
	for _, part := range parts {
		size, err := copyPart(ctx, out, at, part)
		if err != nil {
			return fmt.Errorf("write %s: %w", image, err)
		}
		room := max(align, (size+align-1)/align*align) // a single block has no tree, but its partition must be there
		table = append(table, extent{start: at, size: room})
		at += room
	}
	head, err := partitionTable(table)
	if err != nil {
		return err
	}
	if _, err := out.WriteAt(head, 0); err != nil {
		return err
	}
	// Whatever the umask says: the image is public, and shims may run as another user.
	return errors.Join(out.Truncate(at), out.Chmod(0o644), out.Sync())
}

func copyPart(ctx context.Context, out *os.File, at int64, part string) (int64, error) {
	in, err := os.Open(part)
	if err != nil {
		return 0, err
	}
	defer in.Close()
	return io.Copy(io.NewOffsetWriter(out, at), io.NewSectionReader(reader{ctx, in}, 0, 1<<62))
}
