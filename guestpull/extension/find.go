package extension

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// sectorSize is the unit of sysfs, in bytes.
const sectorSize = 512

// disk is one extension's disk: its two partitions.
type disk struct {
	data, hash partition
}

type partition struct {
	node string
	size int64 // bytes
}

// plan pairs the promised images with the disks that there are.
func plan(images []Image, disks map[string]disk) error {
	if len(images) > maxImages {
		return fmt.Errorf("%d extensions are more than %d: %w", len(images), maxImages, errdefs.ErrFailedPrecondition)
	}
	for _, image := range images {
		if _, is := disks[image.Name]; !is {
			return fmt.Errorf("extension %s: the kernel command line has its parameters, but no disk has the serial %s%s: %w",
				image.Name, serialPrefix, image.Name, errdefs.ErrFailedPrecondition)
		}
	}
	for name := range disks {
		if !slices.ContainsFunc(images, func(i Image) bool { return i.Name == name }) {
			return fmt.Errorf("extension %s: a disk has the serial %s%s, but the kernel command line has no %s%s%s to check it by: %w",
				name, serialPrefix, name, paramPrefix, name, paramSuffix, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

// find lists the disks of extensions by name.
func find(sysBlock string) (map[string]disk, error) {
	serials, err := filepath.Glob(filepath.Join(sysBlock, "vd*", "serial"))
	if err != nil {
		return nil, err
	}
	found := map[string]disk{}
	for _, file := range serials {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read serial of a disk: %w", err)
		}
		name, is := strings.CutPrefix(strings.TrimSpace(string(text)), serialPrefix)
		if !is {
			continue
		}
		if !validName(name) {
			return nil, fmt.Errorf("serial %.32q of a disk is no extension's: %w", text, errdefs.ErrFailedPrecondition)
		}
		if _, twice := found[name]; twice {
			return nil, fmt.Errorf("extension %s: there are two disks: %w", name, errdefs.ErrFailedPrecondition)
		}
		if found[name], err = partitions(filepath.Dir(file)); err != nil {
			return nil, fmt.Errorf("extension %s: %w", name, err)
		}
	}
	return found, nil
}

// partitions finds a disk's first and second partition.
func partitions(dir string) (disk, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return disk{}, err
	}
	var d disk
	for _, entry := range entries {
		text, err := os.ReadFile(filepath.Join(dir, entry.Name(), "partition"))
		if err != nil {
			continue // anything else of a disk
		}
		var to *partition
		switch strings.TrimSpace(string(text)) {
		case "1":
			to = &d.data
		case "2":
			to = &d.hash
		default:
			continue
		}
		size, err := os.ReadFile(filepath.Join(dir, entry.Name(), "size"))
		if err != nil {
			return disk{}, err
		}
		sectors, err := strconv.ParseInt(strings.TrimSpace(string(size)), 10, 64)
		if err != nil || sectors < 0 || sectors > 1<<54 {
			return disk{}, fmt.Errorf("a partition has %.32q sectors: %w", size, errdefs.ErrFailedPrecondition)
		}
		*to = partition{node: "/dev/" + entry.Name(), size: sectors * sectorSize}
	}
	if d.data.node == "" || d.hash.node == "" {
		return disk{}, fmt.Errorf("its disk lacks partition 1 (data) or 2 (hash tree): %w", errdefs.ErrFailedPrecondition)
	}
	return d, nil
}
