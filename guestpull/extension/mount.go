package extension

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/guestpull/scratch/devmapper"
)

// Root is the folder in which extensions are mounted, each by its name.
const Root = "/run/kata-extensions"

// sysBlock is where the kernel lists disks.
const sysBlock = "/sys/block"

// mountFlags let programs of an extension run, but give nobody more rights by them.
const mountFlags = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV

// Mount mounts all extensions of the guest below Root. The kernel modules for dm-verity and EROFS must be loaded if there are
// any. Whatever is wrong with one is errdefs.ErrFailedPrecondition, and what is mounted by then is unmounted again.
func Mount(ctx context.Context, images []Image) (mounted []*Extension, retErr error) {
	disks, err := find(sysBlock)
	if err != nil {
		return nil, err
	}
	if err := plan(images, disks); err != nil {
		return nil, err
	}
	if len(images) == 0 {
		return nil, nil
	}
	mapper, err := devmapper.Open()
	if err != nil {
		return nil, fmt.Errorf("extensions: %w", err)
	}
	defer func() { retErr = errors.Join(retErr, mapper.Close()) }()
	defer func() {
		if retErr == nil {
			return
		}
		for _, e := range mounted {
			retErr = errors.Join(retErr, unmount(mapper, e.Name))
		}
		mounted = nil
	}()
	for _, image := range images {
		begin := time.Now()
		e, err := mount(mapper, image, disks[image.Name])
		if err != nil {
			return mounted, fmt.Errorf("extension %s: %w", image.Name, err)
		}
		mounted = append(mounted, e)
		log.G(ctx).WithFields(log.Fields{"extension": e.Name, "mib": image.size() >> 20, "t_mount": time.Since(begin)}).Info("extension is mounted")
	}
	return mounted, nil
}

// Mounted returns the extensions that another init has mounted below Root.
func Mounted() ([]*Extension, error) { return mountedIn(Root) }

func mountedIn(root string) ([]*Extension, error) {
	entries, err := os.ReadDir(root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list extensions: %w", err)
	}
	var out []*Extension
	for _, entry := range entries {
		e, err := Open(filepath.Join(root, entry.Name()))
		if err != nil {
			return nil, fmt.Errorf("extension %s: %w", entry.Name(), err)
		}
		out = append(out, e)
	}
	return out, nil
}

// mount verifies and mounts one extension, and reads what it says of itself.
func mount(mapper *devmapper.Mapper, image Image, d disk) (e *Extension, retErr error) {
	if err := image.fits(d); err != nil {
		return nil, err
	}
	node, err := mapper.Create(mapperName(image.Name), image.table(d))
	if err != nil {
		return nil, err
	}
	defer func() {
		if retErr != nil {
			retErr = errors.Join(retErr, mapper.Remove(mapperName(image.Name)))
		}
	}()
	dir := filepath.Join(Root, image.Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make mount point: %w", err)
	}
	if err := unix.Mount(node, dir, "erofs", mountFlags, ""); err != nil {
		// The kernel's own message tells of a wrong hash; the error here is the same as for any damage.
		return nil, fmt.Errorf("mount it: its disk does not hold what the kernel command line promises: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	defer func() {
		if retErr != nil {
			retErr = errors.Join(retErr, unix.Unmount(dir, 0))
		}
	}()
	return Open(dir)
}

func unmount(mapper *devmapper.Mapper, name string) error {
	if err := unix.Unmount(filepath.Join(Root, name), 0); err != nil {
		return fmt.Errorf("unmount extension %s: %w", name, err)
	}
	return mapper.Remove(mapperName(name))
}

func mapperName(name string) string { return serialPrefix + name }

// size of what is checked, in bytes.
func (i *Image) size() int64 { return i.DataBlocks * i.DataBlockSize }

// fits compares what was promised with the disk, because the device mapper's own errors say nothing.
func (i *Image) fits(d disk) error {
	perBlock := i.HashBlockSize / hashSize
	tree := int64(0)
	for level := i.DataBlocks; level > 1; {
		level = (level + perBlock - 1) / perBlock
		tree += level
	}
	switch {
	case i.size() > d.data.size:
		return fmt.Errorf("data of %d bytes is promised, and its partition has %d: %w", i.size(), d.data.size, errdefs.ErrFailedPrecondition)
	case tree*i.HashBlockSize > d.hash.size:
		return fmt.Errorf("a hash tree of %d bytes is needed, and its partition has %d: %w", tree*i.HashBlockSize, d.hash.size, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// table is that of dm-verity, see the kernel's Documentation/admin-guide/device-mapper/verity.rst: version 1, with the tree
// from the first block of its partition on.
func (i *Image) table(d disk) devmapper.Table {
	salt := "-"
	if len(i.Salt) > 0 {
		salt = hex.EncodeToString(i.Salt)
	}
	return devmapper.Table{
		Target: "verity", Sectors: i.size() / devmapper.SectorSize, ReadOnly: true,
		Params: fmt.Appendf(nil, "1 %s %s %d %d %d 0 sha256 %x %s", d.data.node, d.hash.node, i.DataBlockSize, i.HashBlockSize, i.DataBlocks, i.RootHash, salt),
	}
}
